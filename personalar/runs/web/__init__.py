"""The web page: train and sample in a browser on this machine.

jobs.py        commands as separate processes, and their state; without Gradio
page_commands.py    the commands that the screens start
photo_sets.py  uploaded photos, and their checks
markup.py      parts of the screens in plain HTML
learning_screens.py, draw_screen.py, screens.py    the screens
server.py      the server and its access control
"""
