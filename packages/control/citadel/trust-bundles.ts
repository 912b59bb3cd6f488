import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { PeerCertificate } from 'node:tls';
import { Backoff, errorBoundary, type Logger, messageOf, serverChainError, verifyServerCertificate } from '@mizzen/common';
import type { FetchPolicy } from '@mizzen/common/fetch-policy';
import { callHttps } from '@mizzen/common/https-call';
import { readPrivateFile, writePrivateFile } from './private-file.ts';
import { certificatesIn, type FetchedBundle, readBundleDocument } from './spiffe-bundle.ts';
import { uriNamesOf } from './subject-alt-names.ts';

const boundary = errorBoundary('federation.refresh');

/** Roots that the mesh trusts beside its own authority's (istio/api mesh config.proto `MeshConfig.CertificateData`). */
export interface CaCertificate {
  /** Exactly one of the two. */
  readonly pem: string | undefined;
  readonly spiffeBundleUrl: string | undefined;
  /** For whose identities they are good; none: for the mesh's own. */
  readonly trustDomains: readonly string[];
}

/** What the mesh trusts: roots, PEM, by trust domain; and the keys of tokens of others. */
export interface TrustBundle {
  /** The mesh's own trust domain and the names that it is known by, too. */
  readonly own: string;
  /** Other trust domains. A root of one is good for its identities alone. */
  readonly others: ReadonlyMap<string, string>;
  /** Certificates of the mesh that are no longer good: revocation lists, PEM; undefined: there are none. */
  readonly crl?: string | undefined;
}

export interface FederationStatus {
  readonly trustDomain: string;
  readonly url: string;
  /** When its bundle was last fetched; absent: never since the start. */
  readonly fetchedAt?: string;
  readonly problem?: string;
}

export interface TrustBundlesOptions {
  /** The roots of the mesh's own authority, PEM. */
  readonly ownRoots: () => string;
  /** Revocation lists of the mesh's own authority, PEM. */
  readonly crl?: () => string | undefined;
  readonly trustDomain: string;
  /** Where bundles are kept for times when their trust domains cannot be reached. */
  readonly directory: string;
  readonly logger: Logger;
  /** What is trusted has changed. */
  readonly onChange: () => void;
  readonly leastRefreshMs?: number;
  /** Where the URLs of bundles may lead. */
  readonly fetchPolicy: FetchPolicy | undefined;
}

interface Endpoint {
  readonly trustDomain: string;
  readonly url: string;
  readonly backoff: Backoff;
  bundle: FetchedBundle | undefined;
  fetchedAt: Date | undefined;
  problem: string | undefined;
  timer: NodeJS.Timeout | undefined;
}

const leastRefreshMs = 10_000;
const mostRefreshMs = 3600_000;
const fetchTimeoutMs = 10_000;
const maxBytes = 1024 * 1024;

const keyOf = ({ trustDomain, url }: { readonly trustDomain: string; readonly url: string }) => `${trustDomain} ${url}`;

/**
 * Who is trusted: the mesh's own roots, those that its configuration adds, and those of other trust domains, which are asked for again and again where they are published
 * (SPIFFE Federation). A trust domain that cannot be reached stays known by what it last said.
 */
export class TrustBundles {
  readonly #options: TrustBundlesOptions;
  readonly #endpoints: Map<string, Endpoint>;
  #given: readonly CaCertificate[];
  #isClosed: boolean;

  constructor(options: TrustBundlesOptions) {
    this.#options = options;
    this.#endpoints = new Map();
    this.#given = [];
    this.#isClosed = false;
  }

  /** What the configuration says now: new endpoints are asked, others forgotten. */
  configure(certificates: readonly CaCertificate[]): void {
    this.#given = certificates;
    const wanted = new Map(
      certificates.flatMap(({ spiffeBundleUrl: url, trustDomains }) =>
        url === undefined ? [] : trustDomains.map((trustDomain) => [keyOf({ trustDomain, url }), { trustDomain, url }] as const),
      ),
    );
    for (const [key, { timer }] of this.#endpoints)
      if (!wanted.has(key)) {
        clearTimeout(timer);
        this.#endpoints.delete(key);
      }
    for (const [key, { trustDomain, url }] of wanted) {
      if (this.#endpoints.has(key)) continue;
      const endpoint: Endpoint = {
        ...{ trustDomain, url, backoff: new Backoff(1_000, 60_000), bundle: this.#kept(trustDomain) },
        ...{ fetchedAt: undefined, problem: undefined, timer: undefined },
      };
      this.#endpoints.set(key, endpoint);
      this.#start(endpoint);
    }
  }

  current(): TrustBundle {
    const { ownRoots, trustDomain } = this.#options;
    const own = [ownRoots()];
    const others = new Map<string, string>();
    const add = (domain: string, pem: string) => others.set(domain, `${others.get(domain) ?? ''}${pem}\n`);
    for (const { pem, trustDomains } of this.#given) {
      if (pem === undefined) continue;
      if (trustDomains.length === 0 || trustDomains.includes(trustDomain)) own.push(pem);
      for (const domain of trustDomains) if (domain !== trustDomain) add(domain, pem);
    }
    for (const { trustDomain: domain, bundle } of this.#endpoints.values()) if (bundle) add(domain, bundle.pem);
    return { own: own.join('\n'), others, crl: this.#options.crl?.() };
  }

  /** JWK sets of the tokens of other trust domains. */
  tokenKeys(): Record<string, string> {
    return Object.fromEntries([...this.#endpoints.values()].flatMap(({ trustDomain, bundle }) => (bundle ? [[trustDomain, bundle.jwks]] : [])));
  }

  status(): FederationStatus[] {
    return [...this.#endpoints.values()].map(({ trustDomain, url, fetchedAt, problem }) => ({
      trustDomain,
      url,
      ...(fetchedAt ? { fetchedAt: fetchedAt.toISOString() } : {}),
      ...(problem ? { problem } : {}),
    }));
  }

  close(): void {
    this.#isClosed = true;
    for (const { timer } of this.#endpoints.values()) clearTimeout(timer);
    this.#endpoints.clear();
  }

  /** Fetches a bundle, and after an exception again. */
  #start(endpoint: Endpoint): void {
    boundary.start(
      () => this.#refresh(endpoint),
      () => this.#startAfter(endpoint.backoff.nextMs(), endpoint),
    );
  }

  #startAfter(delayMs: number, endpoint: Endpoint): void {
    if (this.#isClosed || this.#endpoints.get(keyOf(endpoint)) !== endpoint) return;
    clearTimeout(endpoint.timer);
    endpoint.timer = boundary
      .after(
        delayMs,
        () => this.#start(endpoint),
        () => this.#startAfter(endpoint.backoff.nextMs(), endpoint),
      )
      .unref();
  }

  async #refresh(endpoint: Endpoint): Promise<void> {
    const { trustDomain, url, backoff } = endpoint;
    const { logger, onChange } = this.#options;
    const before = JSON.stringify(endpoint.bundle);
    try {
      const text = await fetchBundle(url, trustDomain, this.#rootsFor(endpoint), this.#options.fetchPolicy);
      if (this.#isClosed || this.#endpoints.get(keyOf(endpoint)) !== endpoint) return;
      const bundle = readBundleDocument(text);
      refuseLookalikes(bundle.pem, this.#options.ownRoots());
      refuseRollback(bundle, this.#newest(trustDomain));
      endpoint.bundle = bundle;
      endpoint.fetchedAt = new Date();
      endpoint.problem = undefined;
      backoff.reset();
      this.#keep(trustDomain, text);
    } catch (error) {
      if (this.#isClosed || this.#endpoints.get(keyOf(endpoint)) !== endpoint) return;
      endpoint.problem = messageOf(error);
      if (backoff.attempts === 0) {
        const meanwhile = endpoint.bundle ? 'the last good one stays in effect' : 'none of its identities are accepted';
        logger.warn(`the bundle of trust domain ${trustDomain} cannot be used: ${endpoint.problem}; ${meanwhile}`, { url });
      }
    }
    const least = this.#options.leastRefreshMs ?? leastRefreshMs;
    const hint = Math.min(Math.max((endpoint.bundle?.refreshSeconds ?? 0) * 1000, least), mostRefreshMs);
    this.#startAfter(endpoint.problem === undefined ? hint * (0.9 + Math.random() * 0.1) : backoff.nextMs(), endpoint);
    if (JSON.stringify(endpoint.bundle) !== before) onChange();
  }

  /** By which the endpoint is known: what the trust domain has said last, or was given; undefined: the roots of the public web. */
  #rootsFor({ trustDomain, bundle }: Endpoint): string | undefined {
    const given = this.#given.filter(({ pem, trustDomains }) => pem !== undefined && trustDomains.includes(trustDomain)).map(({ pem }) => pem);
    return given.length === 0 ? undefined : [bundle?.pem ?? '', ...given].join('\n');
  }

  /** The last good bundle of a trust domain, from any of its endpoints. */
  #newest(trustDomain: string): FetchedBundle | undefined {
    const known = [...this.#endpoints.values()].flatMap((one) => (one.trustDomain === trustDomain && one.bundle ? [one.bundle] : []));
    return known.reduce<FetchedBundle | undefined>((newest, one) => ((one.sequence ?? -1) > (newest?.sequence ?? -1) ? one : (newest ?? one)), undefined);
  }

  #file(trustDomain: string): string {
    return join(this.#options.directory, `${trustDomain}.json`);
  }

  #kept(trustDomain: string): FetchedBundle | undefined {
    try {
      const text = readPrivateFile(this.#file(trustDomain));
      return text === undefined ? undefined : readBundleDocument(text);
    } catch {
      // Whatever is wrong with it, there will be a new one.
      return undefined;
    }
  }

  #keep(trustDomain: string, text: string): void {
    try {
      mkdirSync(this.#options.directory, { recursive: true, mode: 0o700 });
      writePrivateFile(this.#file(trustDomain), text);
    } catch (error) {
      this.#options.logger.warn('a bundle cannot be kept for the next start', { trustDomain, error: messageOf(error) });
    }
  }
}

/** OpenSSL finds roots by their names: another's with the name of one of ours would keep our own workloads out. */
function refuseLookalikes(theirs: string, ours: string): void {
  const own = certificatesIn(ours);
  for (const root of certificatesIn(theirs))
    if (own.some((one) => one.subject === root.subject && !one.publicKey.equals(root.publicKey)))
      throw new Error(`a root in it has the name of one of this mesh (${root.subject.replaceAll('\n', ', ')}), and is another`);
}

/**
 * A trust domain's bundle endpoint must not bring back roots and keys that were withdrawn (SPIFFE Trust Domain and Bundle, section 4.1.1). The last
 * bundle is kept on disk, so this holds over restarts.
 */
function refuseRollback(bundle: FetchedBundle, last: FetchedBundle | undefined): void {
  if (last?.sequence === undefined) return;
  const remedy = 'its publisher must raise spiffe_sequence';
  if (bundle.sequence === undefined) throw new Error(`it has no spiffe_sequence, but one before had ${last.sequence}: ${remedy}`);
  if (bundle.sequence < last.sequence)
    throw new Error(`it is older than one before: spiffe_sequence is ${bundle.sequence}, and was ${last.sequence}; ${remedy}`);
  if (bundle.sequence === last.sequence && (bundle.pem !== last.pem || bundle.jwks !== last.jwks))
    throw new Error(`its content has changed, and its spiffe_sequence is still ${bundle.sequence}: ${remedy}`);
}

/** `roots`: of the trust domain itself (profile https_spiffe), else the public web's (https_web; SPIFFE Federation, section 5.2). */
async function fetchBundle(url: string, trustDomain: string, roots: string | undefined, policy: FetchPolicy | undefined): Promise<string> {
  const { status, text } = await callHttps(url, {
    headers: { accept: 'application/json' },
    signal: AbortSignal.timeout(fetchTimeoutMs),
    policy,
    maxBytes,
    ...(roots === undefined ? {} : { ca: roots }),
    checkServerIdentity: (host, certificate) =>
      roots === undefined ? verifyServerCertificate(host, certificate) : endpointProblem(host, certificate, trustDomain),
  });
  if (status !== 200) throw new Error(`it is answered with ${status}`);
  return text;
}

/** The server is the trust domain's own: by a name that no workload's certificate has, or as SPIRE's server. */
function endpointProblem(host: string, certificate: PeerCertificate, trustDomain: string): Error | undefined {
  const uris = uriNamesOf(certificate.subjectaltname) ?? [];
  if (uris.length === 1 && uris[0] === `spiffe://${trustDomain}/spire/server`) return serverChainError(certificate);
  return verifyServerCertificate(host, certificate);
}
