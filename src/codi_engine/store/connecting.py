"""URLs of object stores, and how a store is reached: credentials, endpoint, patience, and what its refusals mean in words."""

from __future__ import annotations

import contextlib
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from codi_engine.store.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: schemes, and those that are meant by them; ``memory`` lasts as long as the process
SCHEMES = ("s3", "gs", "az", "memory")
_LIKE_URL = re.compile(r"(?i)(s3|s3a|s3n|gs|gcs|az|azure|abfs|abfss|memory|file|https?):/|[a-z][a-z0-9+.-]+://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}\Z")
#: what no key of a run holds: control characters, and what would be another place when the key becomes a path
_UNFIT = re.compile(r'[\x00-\x1f\x7f\\?#*<>|":]')
_MEMORIES: dict[str, Any] = {}
_SILENT = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to ~/.aws/credentials (AWS_PROFILE chooses the profile)"


class Address(NamedTuple):
    """A place at an object store: ``s3://bucket/key``."""

    scheme: str
    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")


def is_url(text: str) -> bool:
    """Say whether a text is meant as a URL; no local path is taken for one but those that begin with a scheme and ``:/``."""
    return bool(_LIKE_URL.match(text))


def parse(text: str) -> Address:
    """Return the place that a URL names.

    Raises
    ------
    StoreError: another scheme, no bucket, or a key that can be no folder's name
    """
    scheme, separator, rest = text.partition("://")
    if scheme not in SCHEMES or not separator:
        raise StoreError(f"'{text[:200]}': is no address of a run at an object store; write s3://BUCKET/NAME (or gs://, az://)")
    bucket, _, key = rest.strip("/").partition("/")
    if not _BUCKET.match(bucket):
        raise StoreError(f"'{text[:200]}': names no bucket; write {scheme}://BUCKET/NAME")
    parts = key.split("/") if key else []
    if not parts or any(part in ("", ".", "..") or _UNFIT.search(part) or len(part.encode()) > 200 for part in parts) or len(key.encode()) > 700:
        raise StoreError(f"'{text[:200]}': needs a name below the bucket, of plain letters, digits, dots and dashes; write {scheme}://{bucket}/NAME")
    return Address(scheme, bucket, key)


def connect(address: Address, quick: bool = False) -> ObjectStore:
    """Return the store below an address; nothing is sent yet.

    Parameters
    ----------
    quick: give up within seconds, for the first look at a place that may be mistyped

    Raises
    ------
    StoreError: the package or credentials are missing
    """
    try:
        from obstore import store as stores
    except ModuleNotFoundError:
        raise StoreError(f"{address}: object stores need a package that is not installed: pip install 'codi-engine[s3]'") from None
    if address.scheme == "memory":
        return _MEMORIES.setdefault(str(address), stores.MemoryStore())
    client: dict[str, Any] = {"connect_timeout": timedelta(seconds=3 if quick else 10), "timeout": timedelta(seconds=6 if quick else 60)}
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}
    retry: dict[str, Any] = {"max_retries": 2 if quick else 6, "retry_timeout": timedelta(seconds=6 if quick else 20), "backoff": backoff}
    try:
        if address.scheme == "s3":
            return _s3(stores, address, client, retry)
        return stores.from_url(str(address), client_options=client, retry_config=retry)
    except StoreError:
        raise
    except Exception as error:  # what a client says of its configuration has no class of its own
        raise StoreError(f"{address}: cannot be reached: {' '.join(str(error).split('Debug source')[0].split())[:300]}") from None


def _s3(stores: Any, address: Address, client: dict[str, Any], retry: dict[str, Any]) -> ObjectStore:
    config: dict[str, Any] = {}
    profile = _profile()
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    if endpoint:
        if not re.match(r"https?://[^/\s]+", endpoint):
            raise StoreError(f"{address}: the endpoint '{endpoint[:200]}' is no address; AWS_ENDPOINT_URL is written https://HOST or http://HOST:PORT")
        config["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")) and profile.get("region"):
        config["region"] = profile["region"]
    if not os.environ.get("AWS_CHECKSUM_ALGORITHM"):
        config["checksum_algorithm"] = "SHA256"  # the service compares what arrived with what was sent
    config |= _credentials(address, profile)
    made: ObjectStore = stores.S3Store(address.bucket, prefix=address.key, client_options=client, retry_config=retry, **config)
    return made


def _credentials(address: Address, profile: dict[str, str]) -> dict[str, Any]:
    """Return credentials that the client would not find by itself: it reads the environment, and asks the machine's role."""
    env = os.environ.get
    own = env("AWS_ACCESS_KEY_ID") and env("AWS_SECRET_ACCESS_KEY")
    if own or (env("AWS_SKIP_SIGNATURE") or "").lower() in ("true", "1") or env("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return {}
    if env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") or env("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        return {}
    if "aws_access_key_id" in profile and "aws_secret_access_key" in profile:
        token = {"session_token": profile["aws_session_token"]} if "aws_session_token" in profile else {}
        return {"access_key_id": profile["aws_access_key_id"], "secret_access_key": profile["aws_secret_access_key"], **token}
    if profile.keys() & {"sso_session", "sso_start_url", "role_arn", "credential_process", "login_session"}:
        raise StoreError(
            f"{address}: the profile's credentials (sign-on, role or process) are not in the environment; "
            'eval "$(aws configure export-credentials --format env)" puts them there'
        )
    if (env("AWS_EC2_METADATA_DISABLED") or "").lower() == "true":
        raise StoreError(f"{address}: there are no credentials; {_SILENT}")
    return {}


def _profile() -> dict[str, str]:
    """Return what ~/.aws says of the chosen profile; nothing where there is no such file."""
    import configparser

    name = os.environ.get("AWS_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        parser = configparser.RawConfigParser(strict=False)
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):  # it is another program's file; without it the rest decides
            parser.read(os.environ.get(variable) or Path.home() / ".aws" / file, encoding="utf-8")
            if parser.has_section(section):
                found |= dict(parser.items(section))
    return found


# ------------------------------------------------------------------------------------------------ refusals


class Unreachable(StoreError):
    """Nobody answers, or not in time: the same request may succeed later."""


def refusal(address: Address, error: BaseException) -> StoreError:
    """Return what a store's refusal means, in one line, and the remedy."""
    said = str(error)
    head = " ".join(said.split("Debug source")[0].split())
    endpoint = f" of {os.environ['AWS_ENDPOINT_URL']}" if address.scheme == "s3" and os.environ.get("AWS_ENDPOINT_URL") else ""
    if "NoSuchBucket" in said or "ContainerNotFound" in said:
        return StoreError(f"{address}: there is no bucket '{address.bucket}'{endpoint}; make it, or write another name")
    if "169.254.169.254" in said or "metadata.google" in said:
        return StoreError(f"{address}: there are no credentials, and this machine has no role that gives some; {_SILENT}")
    if any(word in said for word in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "UnauthenticatedError", "401 Unauth")):
        return StoreError(f"{address}: the credentials are refused ({_code(said) or 'unauthorized'}); {_SILENT}")
    if "403 Forbidden" in said or "AccessDenied" in said or "PermissionDenied" in type(error).__name__:
        doing = "written" if re.search(r"performing (PUT|POST|DELETE)", said) else "read"
        return StoreError(
            f"{address}: cannot be {doing}: access is denied ({_code(said) or '403'}); "
            "the credentials need ListBucket and GetObject to read, PutObject and DeleteObject to write"
        )
    if any(word in said for word in ("PermanentRedirect", "AuthorizationHeaderMalformed", "301 Moved")):
        return StoreError(f"{address}: the bucket lies in another region; set AWS_REGION to it")
    if any(word in said for word in ("error sending request", "timed out", "timeout", "HTTP error", "500 ", "502 ", "503 ", "504 ", "429 ")):
        return Unreachable(f"{address}: the object store{endpoint} does not answer; look after the network and the endpoint, then repeat the command")
    return StoreError(f"{address}: {head[:400]}")


def _code(said: str) -> str:
    found = re.search(r"<Code>(\w+)</Code>", said)
    return found[1] if found else ""
