"""How the order service is served: two workers, forked once the shop is set up."""

import os

wsgi_app = "app:create_app()"
bind = f"127.0.0.1:{os.environ.get('PORT', '5000')}"
workers = 2
preload_app = True
control_socket_disable = True  # its path is one per user, and a machine may run several copies of the shop
