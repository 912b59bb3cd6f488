import { X509Certificate } from 'node:crypto';
import { isIP } from 'node:net';
import { type ConnectionOptions, createSecureContext, type PeerCertificate, type SecureContext } from 'node:tls';
import { MizzenError } from '@mizzen/common';
import { SubjectAltNameMatcher_SanType } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/common_pb.js';
import type { UpstreamTlsContext } from '@mizzen/envoy-api/gen/envoy/extensions/transport_sockets/tls/v3/tls_pb.js';
import { compileStringMatcher, type TextTest } from '../route/matchers.ts';
import { alternativeNames } from './peer-identity.ts';
import type { KeyPair, SecretStore } from './secret-store.ts';
import { TlsSources, validationOf } from './tls-sources.ts';
import { protocolVersions } from './tls-versions.ts';

/**
 * The client side of a cluster's TLS. The secure context is made when a secret arrives or changes; a connection uses the newest. A
 * server is taken only if the roots verify it and one of the expected names is in its certificate.
 */
export class ClientTls {
  readonly isMesh: boolean;
  readonly #sources: TlsSources;
  readonly #names: readonly { readonly type: 'uri' | 'dns' | 'ip'; readonly test: TextTest; readonly text: string }[];
  readonly #alpn: string[];
  readonly #sni: string;
  readonly #versions: { readonly minVersion: 'TLSv1.2' | 'TLSv1.3'; readonly maxVersion: 'TLSv1.2' | 'TLSv1.3' };
  /** The newest secure context, and what it was made of. */
  #context: SecureContext | undefined;
  #contextPair: KeyPair | undefined;
  #contextRoots: string | undefined;

  constructor(config: UpstreamTlsContext, secrets: SecretStore, place: string) {
    this.#sources = new TlsSources(config.commonTlsContext, secrets, place);
    const common = config.commonTlsContext!;
    this.#names = (validationOf(common).context?.matchTypedSubjectAltNames ?? []).map(({ sanType, matcher }) => {
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
    this.isMesh = this.#sources.hasSdsKeyPair && common.alpnProtocols.includes('istio');
    this.#context = undefined;
    this.#contextPair = undefined;
    this.#contextRoots = undefined;
  }

  get notReadyReason(): string | undefined {
    const [missing] = this.#sources.missing();
    return missing === undefined ? undefined : `the secret ${missing} has not arrived`;
  }

  connectOptions(host: string, port: number): ConnectionOptions {
    return {
      host,
      port,
      secureContext: this.#secureContext(),
      ...(this.#sni !== '' && isIP(this.#sni) === 0 ? { servername: this.#sni } : {}),
      ...(this.#alpn.length > 0 ? { ALPNProtocols: this.#alpn } : {}),
      rejectUnauthorized: this.#sources.hasRoots,
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
    const pair = this.#sources.keyPair();
    const roots = this.#sources.roots();
    if (this.#context === undefined || this.#contextPair !== pair || this.#contextRoots !== roots) {
      this.#context = createSecureContext({ ...(pair ? { cert: pair.cert, key: pair.key } : {}), ...(roots ? { ca: roots } : {}), ...this.#versions });
      this.#contextPair = pair;
      this.#contextRoots = roots;
    }
    return this.#context;
  }
}
