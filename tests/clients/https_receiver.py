"""A receiver of webhooks over TLS, with an authority of its own.

Writes the authority's certificate to the file named by the first argument, listens on a free port with a certificate for
localhost, prints the port, and prints each body that it takes as one line.
"""

import datetime
import http.server
import pathlib
import ssl
import sys
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(name, issuer, key, signer, extensions):
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


def pem(thing):
    return thing.public_bytes(serialization.Encoding.PEM)


def called(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        print(body.decode(), flush=True)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = called("an authority of one test")
    is_authority = (x509.BasicConstraints(ca=True, path_length=0), True)
    signed = certificate(root, root, authority, authority, [is_authority])
    names = (x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    served = certificate(called("localhost"), root, own, authority, [names])
    pathlib.Path(sys.argv[1]).write_bytes(pem(signed))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        key = own.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write(key + pem(served))
        file.flush()
        context.load_cert_chain(file.name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    print(server.server_address[1], flush=True)
    server.serve_forever()


main()
