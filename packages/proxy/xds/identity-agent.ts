import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { DescService } from '@bufbuild/protobuf';
import { type Client, Code, ConnectError, createClient } from '@connectrpc/connect';
import { Backoff, errorBoundary, type Logger, MizzenError, messageOf } from '@mizzen/common';
import { clockToleranceMs, issuedAtMs, timeProblem } from '@mizzen/common/certificate-time';
import { GrpcConnection, maxMessageBytes } from '@mizzen/common/grpc-client';
import { IstioCertificateService } from '@mizzen/envoy-api/gen/istio/v1/auth/ca_pb.js';
import type { ProxyConfig } from '../proxy-config.ts';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { isRevoked, leafCrls } from '../tls/leaf-crl.ts';
import { rootSecretName, workloadSecretName } from '../tls/secret-names.ts';
import { type KeyPair, rootsOfDomain, type SecretStore } from '../tls/secret-store.ts';

const boundary = errorBoundary('identity.renew');
/** After an error of this proxy's own. */
const maxRetryMs = 1_000;

interface Tls {
  readonly ca: string;
  readonly cert?: string;
  readonly key?: string;
}

/**
 * Keeps the workload's certificate fresh: makes a key, has it signed by the CA (Istio's CreateCertificate), and does so again at half of
 * its life, with jitter, so that a mesh does not renew all at once; or at once, by its token, when the certificate is revoked. The key never leaves this process.
 */
export class IdentityAgent {
  readonly #config: ProxyConfig;
  readonly #secrets: SecretStore;
  readonly #counters: ProxyCounters;
  readonly #logger: Logger;
  readonly #backoff: Backoff;
  /** Until the next renewal. */
  #timer: NodeJS.Timeout | undefined;
  /** Until the next attempt, after one that has failed. */
  #retryTimer: NodeJS.Timeout | undefined;
  #wake: (() => void) | undefined;
  #isClosed: boolean;
  #expiresAt: number;
  /** The certificate proves nothing any more: the token has to. */
  #isRevoked: boolean;
  /** A certificate is being asked for, or will be asked for again in a moment. */
  #isObtaining: boolean;
  /** A certificate was restored that need not be renewed yet. */
  #isRestored: boolean;
  readonly #restored: PromiseWithResolvers<void>;
  /** PEM, without blanks: the root that the newest certificate leads to. */
  #root: string;
  #onRenewed: () => void;
  /** Why the newest request failed; '': it did not. */
  #lastProblem: string;
  /** To the control plane, and the credentials that it was made with. */
  #connection: { readonly connection: GrpcConnection; readonly tls: Tls } | undefined;

  constructor(config: ProxyConfig, secrets: SecretStore, counters: ProxyCounters, logger: Logger) {
    this.#config = config;
    this.#secrets = secrets;
    this.#counters = counters;
    this.#logger = logger;
    this.#backoff = new Backoff(250, 15_000);
    this.#timer = undefined;
    this.#retryTimer = undefined;
    this.#wake = undefined;
    this.#isClosed = false;
    this.#expiresAt = 0;
    this.#isRevoked = false;
    this.#isObtaining = false;
    this.#isRestored = false;
    this.#restored = Promise.withResolvers();
    this.#root = '';
    this.#onRenewed = () => {};
    this.#lastProblem = '';
    this.#connection = undefined;
    secrets.onChange((name) => name === rootSecretName && this.#rootsChanged());
  }

  /** Resolves when there is a certificate; keeps trying until then, and goes on renewing it. */
  async start(): Promise<void> {
    await Promise.race([this.#obtain(), this.#restored.promise]);
  }

  /** The certificate and the root that it leads to, PEM; undefined: there is none. */
  current(): { readonly pair: KeyPair; readonly root: string } | undefined {
    const pair = this.#secrets.keyPair(workloadSecretName);
    return pair === undefined ? undefined : { pair, root: this.#root };
  }

  /** Takes a certificate of an earlier process of this proxy, which is still valid. It is renewed as if this process had obtained it. */
  restore(pair: KeyPair, root: string): void {
    if (this.current() !== undefined || this.#isClosed) return;
    const certificate = new X509Certificate(pair.cert);
    this.#expiresAt = Date.parse(certificate.validTo);
    this.#root = withoutBlanks(root);
    this.#secrets.setKeyPair(workloadSecretName, pair);
    this.#logger.info('uses the certificate kept on disk', { until: new Date(this.#expiresAt).toISOString() });
    const issuedAt = issuedAtMs(certificate);
    this.#isRestored = this.#renewLater((this.#expiresAt - issuedAt) * renewalShare() - (Date.now() - issuedAt));
    if (this.#isRestored) this.#wake?.();
    this.#restored.resolve();
  }

  /** A certificate that is waited for is requested at once, whatever the pause. */
  controlPlaneIsBack(): void {
    this.#backoff.reset();
    if (this.#isObtaining) this.#wake?.();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#retryTimer);
    this.#wake?.();
    this.#connection?.connection.close();
  }

  /** Told when there is a newer certificate than the one that connections were made with. */
  onRenewed(listener: () => void): void {
    this.#onRenewed = listener;
  }

  /** What the clock of this machine has against the certificate of this workload, and the remedy; undefined: nothing. */
  timeProblem(nowMs = Date.now()): string | undefined {
    const pair = this.#secrets.keyPair(workloadSecretName);
    if (pair === undefined) return undefined;
    const { trustDomain, namespace, serviceAccount, control } = this.#config;
    const whose = `the certificate of this workload (spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount})`;
    const problem = timeProblem(new X509Certificate(pair.cert), { whose, clock: 'the clock of this machine', nowMs, toleranceMs: 0 });
    if (problem === undefined) return undefined;
    return `${problem}. The control plane at ${control} has issued no other${this.#lastProblem === '' ? '' : `: ${this.#lastProblem}`} Until it does, peers refuse mutual TLS with this workload.`;
  }

  /** The control plane does not take this certificate any more, for this reason. */
  refused(certificate: string | undefined, reason: string): void {
    if (certificate === undefined || certificate !== this.#goodPair()?.cert || this.#isClosed) return;
    this.#isRevoked = true;
    this.#logger.warn(`the control plane refuses the certificate of this workload: ${reason} A new one is requested with the token.`);
    this.#obtainWithin(revokedSpreadMs);
  }

  /**
   * The first of the mesh's roots signs. Where it is another than before, a certificate of it is wanted, but not by all workloads at once. With the roots come the lists of what is
   * revoked.
   */
  #rootsChanged(): void {
    const pair = this.#goodPair();
    const lists = this.#secrets.roots(rootSecretName)?.leafCrl;
    if (pair !== undefined && lists !== undefined && isRevoked(new X509Certificate(pair.cert).raw, leafCrls(lists)))
      return this.refused(pair.cert, 'the certificate is revoked.');
    const first = withoutBlanks(this.#roots().split('-----END CERTIFICATE-----')[0]!);
    if (this.#root === '' || first === '' || this.#root.startsWith(first) || this.#isClosed) return;
    const life = this.#expiresAt - Date.now();
    const spread = Math.max(0, Math.min(rootChangeSpreadMs, life / 10));
    this.#obtainWithin(spread);
    this.#logger.info('the mesh has another root: the certificate is renewed', { withinMs: Math.round(spread) });
  }

  #obtainWithin(ms: number): void {
    if (this.#isObtaining) return this.#wake?.();
    clearTimeout(this.#timer);
    const again = () => {
      if (!this.#isClosed) this.#obtainWithin(maxRetryMs);
    };
    this.#timer = boundary.after(Math.random() * ms, () => this.#obtainSoon(), again).unref();
  }

  /** Of this mesh: the roots of others say nothing about its control plane. */
  #roots(): string {
    return rootsOfDomain(this.#secrets.roots(rootSecretName), this.#config.trustDomain) ?? '';
  }

  /** The credentials for a connection to the control plane: a certificate that is still good, else the token. */
  credentials(): { readonly tls: Tls; readonly token: string | undefined } {
    // What the control plane has said since counts beside the file: roots change.
    const ca = [readFile(this.#config.rootCertificateFile, 'the root certificate'), this.#roots()].join('\n');
    const pair = this.#goodPair();
    if (pair) return { tls: { ca, cert: pair.cert, key: pair.key }, token: undefined };
    return { tls: { ca }, token: readFile(this.#config.tokenFile, 'the token').trim() };
  }

  #goodPair(): KeyPair | undefined {
    return Date.now() < this.#expiresAt && !this.#isRevoked ? this.#secrets.keyPair(workloadSecretName) : undefined;
  }

  /** Whatever goes wrong on the way, a certificate is requested again. */
  #obtainSoon(): void {
    boundary.start(
      () => this.#obtain(),
      () => {
        this.#isObtaining = false;
        if (!this.#isClosed) this.#obtainWithin(maxRetryMs);
      },
    );
  }

  async #obtain(): Promise<void> {
    this.#isObtaining = true;
    while (!this.#isClosed) {
      if (this.#isRestored) {
        this.#isRestored = this.#isObtaining = false;
        return;
      }
      const shown = this.#goodPair()?.cert;
      try {
        const isRenewal = this.#root !== '';
        const { pair, root } = await this.#request();
        if (this.#keepsTheOneBefore(pair)) return;
        this.#root = withoutBlanks(root);
        this.#isRevoked = false;
        this.#isObtaining = false;
        const certificate = new X509Certificate(pair.cert);
        this.#expiresAt = Date.parse(certificate.validTo);
        this.#secrets.setKeyPair(workloadSecretName, pair);
        this.#counters.values.certificates_issued_total++;
        this.#backoff.reset();
        this.#logger.info('has a certificate', { identity: certificate.subjectAltName?.replace(/^URI:/, ''), until: new Date(this.#expiresAt).toISOString() });
        this.#isRestored = false;
        this.#lastProblem = '';
        if (!this.#renewLater((this.#expiresAt - Date.now()) * renewalShare())) {
          this.#logger.error(this.timeProblem() ?? 'the new certificate has no time left');
          this.#renewLater(outOfTimeMs);
        }
        if (isRenewal) this.#onRenewed();
        this.#rootsChanged();
        return;
      } catch (error) {
        boundary.unexpected(error);
        this.#lastProblem = explain(error);
        if (isUnauthenticated(error)) this.refused(shown, this.#lastProblem);
        const wait = this.#backoff.nextMs();
        this.#logger.warn(
          `no certificate from the control plane at ${this.#config.control}: ${this.#lastProblem} Trying again in ${(wait / 1000).toFixed(1)} s.`,
        );
        const problem = this.timeProblem();
        if (problem !== undefined) this.#logger.error(problem);
        if (!this.#isRestored)
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
            this.#retryTimer = setTimeout(resolve, wait);
          });
        clearTimeout(this.#retryTimer);
        this.#wake = undefined;
      }
    }
  }

  /**
   * Whether the control plane has issued a certificate that is not valid yet by the clock of this machine, and the one before still is: peers would refuse the new
   * one. Another is requested in a while.
   */
  #keepsTheOneBefore({ cert }: KeyPair): boolean {
    const leftMs = this.#goodPair() === undefined ? 0 : this.#expiresAt - Date.now();
    const whose = 'the new certificate of this workload';
    const problem = timeProblem(new X509Certificate(cert), { whose, clock: 'the clock of this machine', nowMs: Date.now(), toleranceMs: clockToleranceMs });
    if (leftMs <= 0 || problem === undefined) return false;
    this.#isObtaining = false;
    this.#isRestored = false;
    this.#backoff.reset();
    this.#logger.error(`${problem}. The certificate before it stays in use until ${new Date(this.#expiresAt).toISOString()}, and another is requested`);
    this.#renewLater(Math.min(notYetValidMs, leftMs));
    return true;
  }

  /** Whether there is time until then. */
  #renewLater(ms: number): boolean {
    if (ms <= 0) return false;
    clearTimeout(this.#timer);
    this.#timer = boundary
      .after(
        ms,
        () => this.#obtainSoon(),
        () => this.#obtainWithin(maxRetryMs),
      )
      .unref();
    return true;
  }

  /** A certificate with a key of its own, for whoever is given it; the agent's own key stays here. Of another identity only where the control plane trusts this one with it. */
  async issueFor(spiffeId: string): Promise<{ readonly pair: KeyPair; readonly root: string }> {
    const { trustDomain, namespace, serviceAccount } = this.#config;
    return this.#request(spiffeId === `spiffe://${trustDomain}/ns/${namespace}/sa/${serviceAccount}` ? {} : { ImpersonatedIdentity: spiffeId });
  }

  /** A client of the control plane, with the credentials that there are now. */
  client<Service extends DescService>(service: Service): { readonly client: Client<Service>; readonly headers: Record<string, string> } {
    const { tls, token } = this.credentials();
    if (this.#connection === undefined || this.#connection.tls.ca !== tls.ca || this.#connection.tls.cert !== tls.cert) {
      const connection = new GrpcConnection({
        ...{ address: this.#config.control, tls, serverName: 'mizzen-control', callTimeoutMs: 10_000, idleTimeoutMs: 30_000 },
      });
      this.#connection = { connection, tls };
    }
    return { client: createClient(service, this.#connection.connection.transport), headers: token === undefined ? {} : { authorization: `Bearer ${token}` } };
  }

  async #request(metadata: Record<string, string> = {}): Promise<{ readonly pair: KeyPair; readonly root: string }> {
    const { key, csr } = await createSigningRequest();
    const { client, headers } = this.client(IstioCertificateService);
    const response = await client.createCertificate({ csr, validityDuration: BigInt(this.#config.certificateSeconds ?? 0), metadata }, { headers });
    const chain = response.certChain;
    if (chain.length < 2) throw new MizzenError('invalid-certificate', 'the CA answered without a chain');
    return { pair: { cert: chain.slice(0, -1).join('\n'), key }, root: chain.at(-1)! };
  }
}

/** How far apart renewals for a new root lie at most. */
const rootChangeSpreadMs = 30_000;
/** The same for those whose certificates were revoked together: until they have new ones nobody talks to them. */
const revokedSpreadMs = 500;

/** A certificate that has expired on arrival, by the clock of this machine, is requested again after this time. */
const outOfTimeMs = 15_000;
/** A certificate that is not valid yet is requested again after this time, while the one before it is valid. */
const notYetValidMs = 60_000;
/** Of a certificate's life: when it is renewed. */
const renewalShare = () => 0.45 + Math.random() * 0.1;

const withoutBlanks = (pem: string) => pem.replace(/\s/g, '');

async function createSigningRequest(): Promise<{ key: string; csr: string }> {
  // Loaded when it is needed: the library costs more start-up time than the request itself.
  await import('reflect-metadata');
  const [{ Pkcs10CertificateRequestGenerator }, { webcrypto, createPrivateKey }] = await Promise.all([import('@peculiar/x509'), import('node:crypto')]);
  const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const request = await Pkcs10CertificateRequestGenerator.create({ name: 'O=mizzen', keys, signingAlgorithm: algorithm }, webcrypto);
  const der = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', keys.privateKey));
  const key = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' }).export({ format: 'pem', type: 'pkcs8' }) as string;
  return { key, csr: request.toString('pem') };
}

function readFile(path: string, what: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new MizzenError('unreadable-file', `${what} cannot be read (${messageOf(error)}).`, path);
  }
}

/** Whether the control plane was not convinced by what a caller has shown. */
export function isUnauthenticated(error: unknown): boolean {
  return error instanceof ConnectError && error.code === Code.Unauthenticated;
}

/** The reason in a sentence: connection problems come wrapped several times. */
export function explain(error: unknown): string {
  const text = messageOf(error).replace(/^\[\w+\] /, '');
  if (/ECONNREFUSED/.test(text)) return 'nobody listens there. Is the control plane running?';
  if (/certificate has expired|certificate is not yet valid/i.test(text))
    return `the certificate of the control plane is out of its time by the clock of this machine, which says ${new Date().toISOString()} (${text}). Set the clock that is wrong; where both are right, restart the control plane.`;
  if (/self.signed|unable to verify|UNABLE_TO_VERIFY|SELF_SIGNED|unable to get (?:local )?issuer/i.test(text))
    return 'its certificate is not signed by the root that this proxy was given.';
  if (/readMaxBytes/.test(text))
    return `it sends a message of more than maxMessageBytes (${maxMessageBytes} bytes): split the configuration, or scope it by Sidecar objects.`;
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
