import { join } from 'node:path';
import type { ConnectRouter, HandlerContext } from '@connectrpc/connect';
import type { Logger } from '@mizzen/common';
import { errorBoundary } from '@mizzen/common';
import type { FetchPolicy } from '@mizzen/common/fetch-policy';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import { SvidService } from '@mizzen/envoy-api/gen/mizzen/citadel/v1/svid_pb.js';
import { authenticate, transportPeerKey } from './caller.ts';
import { CertificateAuthority } from './certificate-authority.ts';
import { type CertificateIssuer, CheckedIssuer, type WorkloadSigner } from './certificate-issuer.ts';
import { certificateService } from './certificate-service.ts';
import { Forwarders } from './forwarders.ts';
import { IssuanceLog } from './issuance-log.ts';
import { Revocations } from './revocations.ts';
import { defaultRefreshSeconds, PublishedBundle } from './spiffe-bundle.ts';
import type { Identity } from './spiffe-identity.ts';
import { SvidTokens, svidService } from './svid-tokens.ts';
import { TokenIssuer } from './token-issuer.ts';
import { TrustBundles } from './trust-bundles.ts';
import { KnownTokens, type TokenSources } from './workload-tokens.ts';

const boundary = errorBoundary('ca.revocations');

const crlSeconds = 7 * 86_400;
const crlRenewMs = 86_400_000;

export interface CitadelOptions {
  /** Where keys are kept. */
  readonly directory: string;
  readonly trustDomain: string;
  /** Who signs for workloads, if not the authority of this control plane. */
  readonly issuer?: CertificateIssuer | undefined;
  /** Service accounts that may ask for identities of others, and for which (see Forwarders). */
  readonly forwarders?: readonly string[] | undefined;
  /** Where URLs in configuration may lead; undefined: anywhere. */
  readonly fetchPolicy?: FetchPolicy | undefined;
  /** Whose tokens are taken from workloads beside those of this control plane. */
  readonly tokenSources?: TokenSources | undefined;
  /** How often others are to ask for this trust domain's bundle (300), and how often this one asks others at most (10). */
  readonly bundleRefreshSeconds?: number | undefined;
  /** The roots of other trust domains have changed. */
  readonly onTrustChanged: () => void;
  readonly logger: Logger;
}

/** Identity: who is trusted, who signs, who somebody is, and the services by which workloads ask. */
export class Citadel {
  readonly authority: CertificateAuthority;
  readonly tokens: TokenIssuer;
  readonly trust: TrustBundles;
  /** What this trust domain is known by. */
  readonly bundle: PublishedBundle;
  /** Tokens that workloads may begin with. */
  readonly workloadTokens: KnownTokens;
  readonly revocations: Revocations;
  readonly #options: CitadelOptions;
  readonly #svids: SvidTokens;
  readonly #log: IssuanceLog;
  readonly #signer: WorkloadSigner;
  readonly #forwarders: Forwarders;
  /** Of the newest revocations, PEM. */
  #crl: string | undefined;
  #crlTimer: NodeJS.Timeout | undefined;

  private constructor(options: CitadelOptions, authority: CertificateAuthority) {
    const { directory, trustDomain, issuer, logger, bundleRefreshSeconds } = options;
    this.#options = options;
    this.authority = authority;
    this.tokens = new TokenIssuer(directory);
    this.workloadTokens = new KnownTokens(this.tokens, options.tokenSources ?? {}, logger);
    this.#svids = new SvidTokens(directory);
    const logPath = join(directory, 'issued.log');
    this.#log = new IssuanceLog(logPath, logger);
    this.revocations = new Revocations({ path: join(directory, 'revoked.json'), logPath, unwritten: () => this.#log.unwritten() });
    this.#signer = issuer === undefined ? authority : new CheckedIssuer(issuer);
    this.#forwarders = new Forwarders(options.forwarders ?? []);
    this.trust = new TrustBundles({
      ...{
        ownRoots: () => this.roots,
        crl: () => this.#crl,
        trustDomain,
        directory: join(directory, 'bundles'),
        logger,
        onChange: options.onTrustChanged,
        fetchPolicy: options.fetchPolicy,
      },
      ...(bundleRefreshSeconds === undefined ? {} : { leastRefreshMs: bundleRefreshSeconds * 1000 }),
    });
    this.#crl = undefined;
    const refreshSeconds = bundleRefreshSeconds ?? defaultRefreshSeconds;
    this.bundle = new PublishedBundle(
      async () => ({ pem: this.trust.current().own, jwks: await this.#svids.keys(), refreshSeconds }),
      join(directory, 'published-bundle.json'),
    );
  }

  static async open(options: CitadelOptions): Promise<Citadel> {
    const citadel = new Citadel(options, await CertificateAuthority.open(options.directory, options.trustDomain));
    await citadel.renewCrl();
    const renew = () => citadel.renewCrl().then(options.onTrustChanged);
    citadel.#crlTimer = boundary.every(crlRenewMs, () => boundary.start(renew)).unref();
    return citadel;
  }

  /** Of the mesh's own identities, PEM: of who signs for workloads first. */
  get roots(): string {
    return [this.#options.issuer?.roots ?? '', this.authority.trustBundle].join('\n').trimStart();
  }

  /** Who calls an RPC; undefined: whoever is on this machine and speaks plain text. Throws ConnectError `unauthenticated`. */
  async admit(context: HandlerContext): Promise<Identity | undefined> {
    if (context.values.get(transportPeerKey).isPlainLoopback) return undefined;
    return authenticate(context, this.workloadTokens, this.#options.trustDomain);
  }

  /** Service accounts that may ask for identities of others: their own identity is worth as much as an admin's. */
  forwarders(): readonly { readonly namespace: string; readonly serviceAccount: string; readonly role: 'admin'; readonly namespaces: undefined }[] {
    return this.#forwarders.accounts().map((account) => {
      const [namespace = '', serviceAccount = ''] = account.split('/');
      return { namespace, serviceAccount, role: 'admin', namespaces: undefined };
    });
  }

  routes(router: ConnectRouter): void {
    const { trustDomain, issuer, logger } = this.#options;
    const generation = () => (issuer === undefined ? this.authority.signingGeneration : undefined);
    const common = { tokens: this.workloadTokens, trustDomain, forwarders: this.#forwarders, log: this.#log };
    router.service(IstioCertificateService, certificateService({ signer: this.#signer, generation, logger, revocations: this.revocations, ...common }));
    router.service(SvidService, svidService({ svids: this.#svids, trust: this.trust, ...common }));
  }

  /** Makes the revocation lists anew. As long as nothing is revoked there are none, and nobody looks. */
  async renewCrl(): Promise<void> {
    const revoked = this.revocations.list();
    this.#crl = revoked.length === 0 ? undefined : await this.authority.revocationLists(revoked, crlSeconds);
  }

  /** Writes the entries of the issuance log that a full disk has not taken. */
  flushLog(): void {
    this.#log.flush();
  }

  close(): void {
    this.flushLog();
    clearInterval(this.#crlTimer);
    this.trust.close();
    this.workloadTokens.close();
    this.#options.issuer?.close?.();
  }
}
