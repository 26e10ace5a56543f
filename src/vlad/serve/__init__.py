"""A detector as a service: requests and files of a watched folder, scored in batches by one thread."""

from vlad.serve.worker import Busy, Closed, Worker

__all__ = ["Busy", "Closed", "Worker"]
