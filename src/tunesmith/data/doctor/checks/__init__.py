"""One check per file: a class ``Check`` (``data.doctor.base``). A new file is a new check; there is no list to edit."""
