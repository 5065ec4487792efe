"""What commands share: arguments, configs from the command line, messages, exit status and signals."""
