"""A private certificate authority, created for each run. It signs Flowgate's certificate and the applications' certificates. Other modules use only the
names of the files."""

from dataclasses import dataclass
import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# How applications reach Flowgate here.
NAMES = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key as PEM files, separate and in one file, because SDKs differ in what they accept."""

    cert: Path
    key: Path
    both: Path

    def paths(self):
        return {name: str(path) for name, path in vars(self).items()}


@dataclass(frozen=True)
class Certificates:
    """Flowgate's, an application's, and the authority that signed both."""

    ca: Path
    server: Pair
    application: Pair


def make(folder, names=()):
    """Creates and writes all of them. The server's certificate is also for these names."""
    folder.mkdir(exist_ok=True)
    authority = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("Flowgate test authority", authority.public_key(), authority, None, [])
    path = folder / "ca.pem"
    path.write_bytes(_pem(ca))
    # The same for a JVM, which reads no PEM file. The password is the usual one of a trust store.
    entries = [pkcs12.PKCS12Certificate(ca, b"flowgate")]
    path.with_suffix(".pem.p12").write_bytes(pkcs12.serialize_java_truststore(entries, serialization.BestAvailableEncryption(b"changeit")))
    server = _pair(folder, "server", authority, [(x509.SubjectAlternativeName([*NAMES, *map(x509.DNSName, names)]), False), _usage(ExtendedKeyUsageOID.SERVER_AUTH)])
    application = _pair(folder, "application", authority, [_usage(ExtendedKeyUsageOID.CLIENT_AUTH)])
    return Certificates(path, server, application)


def _usage(usage):
    return x509.ExtendedKeyUsage([usage]), False


def _pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM)


def _pair(folder, name, authority, extensions):
    key = ec.generate_private_key(ec.SECP256R1())
    cert = _pem(_certificate(name, key.public_key(), authority, "Flowgate test authority", extensions))
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pair = Pair(*(folder / f"{name}{part}.pem" for part in ("", "-key", "-both")))
    for path, content in ((pair.cert, cert), (pair.key, secret), (pair.both, cert + secret)):
        path.write_bytes(content)
    return pair


def _certificate(name, key, authority, issuer, extensions):
    """A certificate signed by the issuer; without an issuer it is the authority's own."""
    now, named = datetime.datetime.now(datetime.timezone.utc), lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    sign = issuer is None
    usages = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False)
    builder = (
        x509.CertificateBuilder(subject_name=named(name), issuer_name=named(issuer or name), public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=sign, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not sign, key_cert_sign=sign, crl_sign=sign, **usages), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(authority, hashes.SHA256())
