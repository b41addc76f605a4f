"""Write reports of runs and studies: tables, figures and HTML pages."""
