"""A restart as a handover: a new process loads beside the one that serves, takes its sockets and jobs over, and the old one drains."""
