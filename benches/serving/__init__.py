"""What bench_serving.py and bench_frontend.py are made of: loads, clients, targets, figures."""
