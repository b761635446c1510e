"""What does an opset or a runtime want written otherwise, with the same numbers?"""
