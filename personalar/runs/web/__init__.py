"""The web page: runs and pictures by hand, in a browser on this machine.

jobs.py        commands as processes of their own, and what their folders say; without Gradio
photo_sets.py  uploaded photos, and the verdicts on them
markup.py      the parts of the screens that are plain HTML
learning_screens.py, screens.py    the screens
server.py      the server, and who may ask it
"""
