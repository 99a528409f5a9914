"""Penstock: prefill and decode on separate workers, served as one."""
