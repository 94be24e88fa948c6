"""What makes the guide of the pages here: Sphinx's settings, pictures, predicted figures."""
