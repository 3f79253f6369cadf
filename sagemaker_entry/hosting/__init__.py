"""Model hosting on SageMaker: deploy, update, query, list and delete endpoints, and run batch transforms.

Imports aws/, pspnet.client and the packages below it; neither training/ nor pipeline/. Start with deploy.py.
"""
