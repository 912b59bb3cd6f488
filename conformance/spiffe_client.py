"""A workload that takes its identity by SPIFFE's own library: writes one line of JSON for each thing it saw, and ends when its standard input does."""

import json
import sys

from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import JwtSvid, SpiffeId, WorkloadApiClient

folder = sys.argv[1]


def say(**seen):
    print(json.dumps(seen), flush=True)


def refused(call):
    try:
        call()
    except Exception as error:  # whatever class the library makes of it
        return str(error)
    return None


with WorkloadApiClient(default_timeout=20) as client:
    context = client.fetch_x509_context()
    svid = context.default_svid
    svid.save(f'{folder}/svid.pem', f'{folder}/key.pem', Encoding.PEM)
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    bundle.save(f'{folder}/bundle.pem', Encoding.PEM)
    say(id=str(svid.spiffe_id), roots=len(bundle.x509_authorities), own=len(client.fetch_x509_bundles().bundles))

    token = client.fetch_jwt_svid(audience={'shop'})
    keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(token.spiffe_id.trust_domain)
    say(
        id=str(JwtSvid.parse_and_validate(token.token, keys, {'shop'}).spiffe_id),
        validated=str(client.validate_jwt_svid(token.token, 'shop').spiffe_id),
        audience=refused(lambda: client.validate_jwt_svid(token.token, 'bank')),
        changed=refused(lambda: client.validate_jwt_svid(token.token[:-8] + 'AAAAAAAA', 'shop')),
        other=refused(lambda: client.fetch_jwt_svid(audience={'shop'}, subject=SpiffeId('spiffe://cluster.local/ns/default/sa/admin'))),
    )

    def changed(update):
        authorities = update.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain).x509_authorities
        say(serial=f'{update.default_svid.leaf.serial_number:x}', roots=len(authorities))

    watch = client.stream_x509_contexts(changed, lambda error: say(error=str(error)))
    sys.stdin.read()
    watch.cancel()
