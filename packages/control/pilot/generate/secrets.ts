import { create } from '@bufbuild/protobuf';
import { type Init, packAny, secretRemovalFeature } from '@mizzen/envoy-api';
import type { CertificateValidationContextSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import { type Secret, SecretSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/secret_pb.js';
import { SPIFFECertValidatorConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_spiffe_validator_config_pb.js';
import type { TrustBundle } from '../../citadel/trust-bundles.ts';
import { secretScheme } from '../apis/secret-names.ts';
import type { ProxyView } from '../proxy-view.ts';
import { selects } from '../registry/service.ts';
import type { MeshSnapshot } from '../snapshot.ts';
import { clientSecrets, clientTlsOf } from './client-tls.ts';
import { GenericSecrets } from './generic-secrets.ts';
import { publicApis } from './public-listeners.ts';
import { mayRead, servedGateways } from './served-gateways.ts';
import { secretsOf } from './server-tls.ts';
import { rootSecretName, trustDomainsOf } from './tls-contexts.ts';

/**
 * SDS: the mesh's roots for every proxy; the certificates of Gateway servers for the gateways that serve the Gateway and may read its namespace; those of
 * Apis and DestinationRules for the proxies that they are for; generic secrets for the proxies that ./generic-secrets.ts lists. Only what is proved of a proxy counts (xds/proven-identity.ts). A workload's own key is never
 * here: it does not leave the workload.
 */
export function secretsFor(names: Iterable<string>, view: ProxyView, snapshot: MeshSnapshot, trustBundle: TrustBundle): Secret[] {
  const secrets: Secret[] = [];
  const generic = new GenericSecrets(view, snapshot);
  let entitled: ReadonlySet<string> | undefined;
  for (const name of names) {
    if (name === rootSecretName) {
      secrets.push(create(SecretSchema, { name, type: { case: 'validationContext', value: meshRoots(snapshot, trustBundle) } }));
      continue;
    }
    if (name.startsWith(secretScheme)) {
      const value = generic.find(name);
      if (value !== undefined)
        secrets.push(create(SecretSchema, { name, type: { case: 'genericSecret', value: { secret: { specifier: { case: 'inlineBytes', value } } } } }));
      else if (takesRemovals(view)) secrets.push(create(SecretSchema, { name }));
      continue;
    }
    if (!name.startsWith('kubernetes://')) continue;
    entitled ??= entitledNames(view, snapshot);
    if (!entitled.has(name)) {
      if (takesRemovals(view)) secrets.push(create(SecretSchema, { name }));
      continue;
    }
    const [namespace, given = ''] = name.slice('kubernetes://'.length).split('/');
    const wantsCa = given.endsWith('-cacert') && !snapshot.secrets.has(`${namespace}/${given}`);
    const data = snapshot.secrets.get(`${namespace}/${wantsCa ? given.slice(0, -'-cacert'.length) : given}`);
    if (!data) continue;
    const bytes = (...keys: string[]) => keys.map((key) => data[key]).find((value) => value !== undefined);
    if (given.endsWith('-cacert')) {
      const ca = bytes('ca.crt', 'cacert');
      if (ca)
        secrets.push(
          create(SecretSchema, {
            name,
            type: { case: 'validationContext', value: { trustedCa: { specifier: { case: 'inlineBytes', value: Buffer.from(ca, 'base64') } } } },
          }),
        );
      continue;
    }
    const cert = bytes('tls.crt', 'cert');
    const key = bytes('tls.key', 'key');
    if (cert && key) {
      secrets.push(
        create(SecretSchema, {
          name,
          type: {
            case: 'tlsCertificate',
            value: {
              certificateChain: { specifier: { case: 'inlineBytes', value: Buffer.from(cert, 'base64') } },
              privateKey: { specifier: { case: 'inlineBytes', value: Buffer.from(key, 'base64') } },
            },
          },
        }),
      );
    }
  }
  return secrets;
}

/** One set of roots as long as there is one trust domain only; else the roots of each, which say nothing about identities of others. */
function meshRoots(snapshot: MeshSnapshot, { own, others, crl: lists }: TrustBundle): Init<typeof CertificateValidationContextSchema> {
  const bytes = (pem: string) => ({ specifier: { case: 'inlineBytes' as const, value: Buffer.from(pem) } });
  const crl = lists === undefined ? {} : { crl: bytes(lists), onlyVerifyLeafCertCrl: true };
  if (others.size === 0) return { trustedCa: bytes(own), ...crl };
  const names = trustDomainsOf(snapshot);
  const domains = new Map<string, string>(names.map((name) => [name, own]));
  // A name of ours that has had roots of its own: both are good for it.
  for (const [name, pem] of others) domains.set(name, names.includes(name) ? `${own}\n${pem}` : pem);
  const trustDomains = [...domains].map(([name, pem]) => ({ name, trustBundle: bytes(pem) }));
  return {
    ...crl,
    customValidatorConfig: { name: 'envoy.tls.cert_validator.spiffe', typedConfig: packAny(SPIFFECertValidatorConfigSchema, { trustDomains }) },
  };
}

/** Whether a proxy drops a secret when it is sent its name without content. Envoy, and releases before, take that for an error. */
const takesRemovals = ({ clientFeatures }: ProxyView) => clientFeatures.includes(secretRemovalFeature);

/** The certificates, and the roots beside them (`-cacert`), that a proxy may have; by what is proved of it. */
function entitledNames(view: ProxyView, snapshot: MeshSnapshot): ReadonlySet<string> {
  if (!view.isProven) return new Set();
  const names = [...(view.type === 'gateway' ? namedByItsGateways(view, snapshot) : namedByItsApis(view, snapshot))];
  return new Set([...names, ...names.map((name) => `${name}-cacert`), ...namedByItsRules(view, snapshot)]);
}

/** A sidecar is given the certificates of APIs that it answers for. */
function namedByItsApis(view: ProxyView, snapshot: MeshSnapshot): string[] {
  return publicApis(view, snapshot).flatMap(({ resolved: { api } }) => {
    const name = api.spec.listener?.tls?.credentialName;
    return name === undefined ? [] : [`kubernetes://${api.namespace}/${name}`];
  });
}

/** A DestinationRule gives secrets of its namespace to the gateways there, and to the sidecars that it selects by name. */
function namedByItsRules(view: ProxyView, snapshot: MeshSnapshot): string[] {
  return snapshot.destinationRules.flatMap((rule) => {
    if (rule.namespace !== view.namespace || (view.type !== 'gateway' && !rule.spec.workloadSelector)) return [];
    if (rule.spec.workloadSelector && !selects(rule.spec.workloadSelector.matchLabels, view.labels)) return [];
    return clientTlsOf(rule.spec).flatMap((tls) => clientSecrets(tls, rule.namespace));
  });
}

/** A gateway is given a secret only when a Gateway that it serves names the secret, from a namespace that the gateway may read. */
function namedByItsGateways(view: ProxyView, snapshot: MeshSnapshot): string[] {
  return servedGateways(view, snapshot).flatMap((gateway) =>
    (gateway.spec.servers ?? []).flatMap((server) =>
      secretsOf(server.tls, gateway.namespace).filter((known) => {
        // The Gateway's own namespace, or one that has granted it (translation has checked that).
        if (gateway.namespace === view.namespace) return true;
        const [namespace = '', secret = ''] = known.slice('kubernetes://'.length).split('/');
        return mayRead(view, { group: '', kind: 'Secret', namespace, name: secret }, snapshot);
      }),
    ),
  );
}
