"""Training jobs on SageMaker: upload the data, submit and follow a job, or rehearse it locally in AWS's toolkit.

Imports aws/, pspnet.config and pspnet.data; neither hosting/ nor pipeline/. Start with submit.py and job_request.py.
"""
