"""Web page that runs an exported model in the browser, without a server for predictions."""
