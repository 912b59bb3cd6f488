import { X509Certificate } from 'node:crypto';
import { isIP } from 'node:net';
import { type ConnectionOptions, createSecureContext, type PeerCertificate, type SecureContext } from 'node:tls';
import { MizzenError } from '@mizzen/common';
import { SubjectAltNameMatcher_SanType } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { CommonTlsContext, UpstreamTlsContext } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { compileStringMatcher, type TextTest } from '../route/matchers.ts';
import { alternativeNames } from './peer-identity.ts';
import { readDataSource, type SecretStore } from './secret-store.ts';
import { protocolVersions } from './tls-versions.ts';

/**
 * The client side of a cluster's TLS. The secure context is made when a secret arrives or changes; a connection uses the newest. A
 * server is taken only if the roots verify it and one of the expected names is in its certificate.
 */
export class ClientTls {
  readonly isMesh: boolean;
  readonly #secrets: SecretStore;
  readonly #keyPairName: string | undefined;
  readonly #rootName: string | undefined;
  readonly #staticKeyPair: { readonly cert: string; readonly key: string } | undefined;
  readonly #staticRoots: string | undefined;
  readonly #names: readonly { readonly type: 'uri' | 'dns' | 'ip'; readonly test: TextTest; readonly text: string }[];
  readonly #alpn: string[];
  readonly #sni: string;
  readonly #versions: { readonly minVersion: 'TLSv1.2' | 'TLSv1.3'; readonly maxVersion: 'TLSv1.2' | 'TLSv1.3' };
  #context: SecureContext | undefined;

  constructor(config: UpstreamTlsContext, secrets: SecretStore, place: string) {
    const common = config.commonTlsContext;
    if (!common) throw new MizzenError('invalid-tls', `${place}: common_tls_context is missing`);
    this.#secrets = secrets;
    this.#keyPairName = common.tlsCertificateSdsSecretConfigs[0]?.name;
    const inline = common.tlsCertificates[0];
    this.#staticKeyPair = inline ? { cert: readDataSource(inline.certificateChain, place), key: readDataSource(inline.privateKey, place) } : undefined;
    const validation = validationOf(common);
    this.#rootName = validation.rootName;
    this.#staticRoots = validation.context?.trustedCa ? readDataSource(validation.context.trustedCa, place) : undefined;
    this.#names = (validation.context?.matchTypedSubjectAltNames ?? []).map(({ sanType, matcher }) => {
      if (!matcher) throw new MizzenError('invalid-tls', `${place}: a subject alternative name matcher is empty`);
      const type =
        sanType === SubjectAltNameMatcher_SanType.URI
          ? ('uri' as const)
          : sanType === SubjectAltNameMatcher_SanType.IP_ADDRESS
            ? ('ip' as const)
            : ('dns' as const);
      return { type, test: compileStringMatcher(matcher), text: String(matcher.matchPattern.value) };
    });
    this.#alpn = common.alpnProtocols.length > 0 ? [...common.alpnProtocols] : [];
    this.#sni = config.sni;
    this.#versions = protocolVersions(common.tlsParams);
    this.isMesh = this.#keyPairName !== undefined && common.alpnProtocols.includes('istio');
    this.#context = undefined;
    // Lives as long as the proxy; clusters that go leave one small listener that finds nothing to do.
    secrets.onChange((name) => {
      if (name === this.#keyPairName || name === this.#rootName) this.#context = undefined;
    });
  }

  get notReadyReason(): string | undefined {
    if (this.#keyPairName !== undefined && !this.#secrets.keyPair(this.#keyPairName)) return `the secret ${this.#keyPairName} has not arrived`;
    if (this.#rootName !== undefined && !this.#secrets.roots(this.#rootName)) return `the secret ${this.#rootName} has not arrived`;
    return undefined;
  }

  connectOptions(host: string, port: number): ConnectionOptions {
    const verifies = this.#rootName !== undefined || this.#staticRoots !== undefined;
    return {
      host,
      port,
      secureContext: this.#secureContext(),
      ...(this.#sni !== '' && isIP(this.#sni) === 0 ? { servername: this.#sni } : {}),
      ...(this.#alpn.length > 0 ? { ALPNProtocols: this.#alpn } : {}),
      rejectUnauthorized: verifies,
      checkServerIdentity: (_host: string, certificate: PeerCertificate) => {
        const problem = this.#verifyPeer(certificate);
        return problem === undefined ? undefined : new MizzenError('wrong-server', problem, `${host}:${port}`);
      },
    };
  }

  /** Whether the server, whose chain the roots have verified, is one of those expected. Returns the problem, or undefined. */
  #verifyPeer(peer: PeerCertificate): string | undefined {
    if (this.#names.length === 0) return this.isMesh ? 'no identity is expected of this cluster, so none can be verified' : undefined;
    if (!peer.raw) return 'the server sent no certificate';
    const certificate = new X509Certificate(peer.raw);
    const found = alternativeNames(certificate);
    if ('problem' in found) return found.problem;
    if (this.isMesh && found.uris.length !== 1) return "the server's certificate does not name exactly one identity";
    const given = { uri: found.uris, dns: found.dns, ip: found.ips };
    for (const { type, test, text } of this.#names) {
      for (const name of given[type]) {
        if (test(name)) return undefined;
        if (type === 'dns' && name.startsWith('*.') && text.indexOf('.') > 0 && text.slice(text.indexOf('.')).toLowerCase() === name.slice(1).toLowerCase())
          return undefined;
      }
    }
    return `the server is ${[...found.uris, ...found.dns].join(', ') || 'nameless'}, but ${this.#names.map((name) => name.text).join(' or ')} was expected`;
  }

  #secureContext(): SecureContext {
    if (this.#context) return this.#context;
    const pair = this.#keyPairName === undefined ? this.#staticKeyPair : this.#secrets.keyPair(this.#keyPairName);
    const roots = this.#rootName === undefined ? this.#staticRoots : this.#secrets.roots(this.#rootName);
    this.#context = createSecureContext({ ...(pair ? { cert: pair.cert, key: pair.key } : {}), ...(roots ? { ca: roots } : {}), ...this.#versions });
    return this.#context;
  }
}

/** The name of the SDS secret with the roots, and what is said of the peer's names. */
export function validationOf(common: CommonTlsContext) {
  const { validationContextType: type } = common;
  switch (type.case) {
    case 'combinedValidationContext':
      return { rootName: type.value.validationContextSdsSecretConfig?.name, context: type.value.defaultValidationContext };
    case 'validationContextSdsSecretConfig':
      return { rootName: type.value.name, context: undefined };
    case 'validationContext':
      return { rootName: undefined, context: type.value };
    default:
      return { rootName: undefined, context: undefined };
  }
}
