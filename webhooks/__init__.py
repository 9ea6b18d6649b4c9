"""What happens here, told to other programs by HTTP."""
