"""Write reports of runs and studies (comparisons of several runs): tables, figures and HTML pages."""
