"""Mask summary pipeline on AWS Lambda: the function, its settings, its package and the CloudFormation template.

The function imports only the files in lambda_package.CODE, and NumPy and Pillow. Start with handler.py.
"""
