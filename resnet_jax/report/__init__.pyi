from .predict import grad_cam as grad_cam
from .predict import predict_files as predict_files
from .report import write_report as write_report
from .subject import Subject as Subject
from .subject import load as load
