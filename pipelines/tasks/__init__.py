"""What fine-tuning teaches: a file a task. task.py says what a task promises; pipelines/finetune.py runs it."""
