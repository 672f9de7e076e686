"""Who is called, and how each is asked, by `calls.py`: a module for each system, and what loads and watches all of them."""
