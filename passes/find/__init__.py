"""What is in a graph: sites, roles, GLUs, experts, what is quantized already?"""
