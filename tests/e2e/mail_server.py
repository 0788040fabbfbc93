"""A mail server by other people (aiosmtpd): STARTTLS, TLS from the first byte, and neither. It writes down what it takes."""

import asyncio
import json
import os
import ssl
from email import message_from_bytes

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword


class Handler:
    async def handle_DATA(self, server, session, envelope):
        mail = message_from_bytes(envelope.content)
        login = getattr(session, "auth_data", None)
        taken = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None or server.transport.get_extra_info("ssl_object") is not None,
            "login": login.login.decode() if login else None,
            "headers": {name: str(value) for name, value in mail.items()},
            "body": mail.get_payload(decode=True).decode(),
        }
        with open("mails.jsonl", "a") as out:
            out.write(json.dumps(taken) + "\n")
        return "250 taken"


def authenticate(server, session, envelope, mechanism, data):
    known = isinstance(data, LoginPassword) and (data.login, data.password) == (b"firmesh", b"mail-password")
    return AuthResult(success=known, handled=False, auth_data=data)


async def main():
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("mail.pem", "mail.key")
    login = {"authenticator": authenticate, "auth_required": True}
    loop = asyncio.get_running_loop()
    servers = {
        "starttls": (dict(login, tls_context=context, require_starttls=True), None),
        "implicit": (dict(login, auth_require_tls=False), context),
        "plain": ({}, None),
    }
    ports = {}
    for name, (options, tls) in servers.items():
        smtp = lambda options=options: SMTP(Handler(), **options)
        server = await loop.create_server(smtp, "127.0.0.1", 0, ssl=tls)
        ports[name] = server.sockets[0].getsockname()[1]
    open("mails.jsonl", "w").close()
    with open("ports.new", "w") as out:
        json.dump(ports, out)
    os.rename("ports.new", "ports.json")
    await asyncio.Event().wait()


asyncio.run(main())
