"""Signs that a proxy sent a request on. A proxy on this machine makes everyone's requests look like this machine's.

A proxy that sends HTTP/1.1 and adds no header can't be told from a local client, so this finds most proxies, not all.
"""

from collections.abc import Iterable

HEADERS = frozenset(
    {
        *("forwarded", "via", "forwarded-for", "x-forward-for", "x-via"),
        # The client's address, as nginx, Apache, HAProxy and content delivery networks call it.
        *("x-real-ip", "real-ip", "x-client-ip", "client-ip", "true-client-ip", "x-cluster-client-ip"),
        *("x-remote-ip", "x-remote-addr", "remote-addr", "x-originating-ip", "x-source-ip", "x-proxyuser-ip"),
        *("proxy-client-ip", "wl-proxy-client-ip", "http-client-ip", "http-x-forwarded-for", "do-connecting-ip"),
        *("incap-client-ip", "ali-cdn-real-ip", "cdn-src-ip", "x-nf-client-connection-ip", "x-appengine-user-ip"),
        # What the client asked the proxy for.
        *("x-original-forwarded-for", "x-original-host", "x-original-proto", "x-original-url", "x-original-uri"),
        *(
            "x-original-to",
            "x-proxy-host",
            "x-proxied-by",
            "x-scheme",
            "x-url-scheme",
            "x-nginx-proxy",
            "front-end-https",
        ),
        # Loop detection and marks of single proxies; mod_proxy of Apache sends max-forwards.
        *("cdn-loop", "max-forwards", "x-varnish", "x-amz-cf-id", "x-azure-ref", "x-arr-log-id", "x-arr-ssl"),
    }
)
PREFIXES = (
    *(
        "x-forwarded",
        "x-envoy-",
        "x-haproxy-",
        "x-traefik-",
        "x-ngrok-",
        "x-vercel-",
        "x-azure-client",
        "x-azure-socket",
    ),
    *("cf-", "fly-", "fastly-", "tailscale-", "x-gateway-", "x-appengine-", "x-original-client-"),
)


def sign_of_a_proxy(names: Iterable[str], *, http_version: str | None) -> str | None:
    """Return what shows that a proxy sent the request on; None if nothing does. `names`: the request's header names."""
    for name in names:
        # Some proxies write underscores.
        plain = name.lower().replace("_", "-")
        if plain in HEADERS or plain.startswith(PREFIXES):
            return f"the header {name}"
    if http_version == "1.0":
        # nginx, as it comes, adds no header but sends on with HTTP/1.0, which clients no longer speak.
        return "HTTP/1.0"
    return None
