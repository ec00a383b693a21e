"""A small order service: Flask, Flask-SQLAlchemy and SQLite, as a tutorial would write it.

    flask --app app run                     # development
    gunicorn --config gunicorn.conf.py      # two workers

    POST /order          {"item": "coffee", "quantity": 2, "ref": "A-17"}   ref is the customer's own and optional
    GET  /order/<id>
    GET  /orders         ?page=1&per_page=50&ref=A-17
    GET  /healthz
"""

import os
from datetime import datetime, timezone

from flask import Flask, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from werkzeug.exceptions import BadRequest, HTTPException

db = SQLAlchemy()

PRODUCTS = [("coffee", 450), ("tea", 300), ("cake", 520), ("juice", 380), ("bagel", 290)]


class Product(db.Model):
    """Something on the menu; `sold` counts all that was ever ordered of it."""

    id = db.Column(db.Integer, primary_key=True)
    name = db.Column(db.String(80), unique=True, nullable=False)
    price_cents = db.Column(db.Integer, nullable=False)
    sold = db.Column(db.Integer, nullable=False, default=0)


class Order(db.Model):
    """One customer's order of one product."""

    __tablename__ = "orders"

    id = db.Column(db.Integer, primary_key=True)
    ref = db.Column(db.String(80), index=True)
    product_id = db.Column(db.ForeignKey("product.id"), nullable=False)
    quantity = db.Column(db.Integer, nullable=False)
    total_cents = db.Column(db.Integer, nullable=False)
    created_at = db.Column(db.DateTime, nullable=False, default=lambda: datetime.now(timezone.utc))
    product = db.relationship(Product)

    def to_dict(self):
        return {
            "id": self.id,
            "ref": self.ref,
            "item": self.product.name,
            "quantity": self.quantity,
            "total_cents": self.total_cents,
            "created_at": self.created_at.isoformat(),
        }


def seed():
    """Puts the menu into an empty shop."""
    if db.session.query(Product).count() == 0:
        db.session.add_all(Product(name=name, price_cents=price) for name, price in PRODUCTS)
        db.session.commit()


def create_app():
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ.get("DATABASE_URL", "sqlite:///orders.db")
    db.init_app(app)
    with app.app_context():
        db.create_all()
        seed()
        # Gunicorn forks its workers after this (preload_app): each of them opens its own connections.
        db.session.remove()
        db.engine.dispose()

    @app.post("/order")
    def create_order():
        body = request.get_json()
        if not isinstance(body, dict):
            raise BadRequest("a JSON object is expected")
        quantity, ref = body.get("quantity", 1), body.get("ref")
        if not isinstance(quantity, int) or isinstance(quantity, bool) or not 1 <= quantity <= 1000:
            raise BadRequest("quantity must be a whole number from 1 to 1000")
        if ref is not None and not (isinstance(ref, str) and 1 <= len(ref) <= 80):
            raise BadRequest("ref must be a text of 1 to 80 characters")
        product = Product.query.filter_by(name=body.get("item")).first()
        if product is None:
            raise BadRequest("item is not on the menu")
        order = Order(ref=ref, product=product, quantity=quantity, total_cents=quantity * product.price_cents)
        product.sold = Product.sold + quantity
        db.session.add(order)
        db.session.commit()
        return jsonify(order.to_dict()), 201, {"Location": f"/order/{order.id}"}

    @app.get("/order/<int:order_id>")
    def get_order(order_id):
        return jsonify(db.get_or_404(Order, order_id).to_dict())

    @app.get("/orders")
    def list_orders():
        query = db.select(Order).order_by(Order.id)
        if "ref" in request.args:
            query = query.filter_by(ref=request.args["ref"])
        page = db.paginate(query, per_page=request.args.get("per_page", 50, type=int), max_per_page=1000)
        return jsonify(orders=[order.to_dict() for order in page], page=page.page, pages=page.pages, total=page.total)

    @app.get("/healthz")
    def healthz():
        db.session.execute(db.text("SELECT 1"))
        return jsonify(status="ok")

    @app.errorhandler(HTTPException)
    def explain(error):
        return jsonify(error=error.description), error.code

    return app
