import 'reflect-metadata';
import { createPrivateKey, generateKeyPairSync, type KeyObject, webcrypto, X509Certificate } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { type CertificateIssuerSpec, type CertificateSpec, findKind, type Kind, type Resource } from '@mizzen/api';
import { Backoff, errorBoundary, type Logger, MizzenError, maxTimerMs, messageOf, parseDurationMs } from '@mizzen/common';
import type { FetchPolicy } from '@mizzen/common/fetch-policy';
import * as x509 from '@peculiar/x509';
import { exportKey } from '../citadel/ca-generation.ts';
import type { Change, StoredResource } from '../galley/config-store.ts';
import type { ResourceRegistry } from '../galley/resource-registry.ts';
import { AcmeClient, type HttpChallenge } from './acme-client.ts';

const boundary = errorBoundary('certificate.reconcile');

export interface CertificateControllerOptions {
  readonly registry: ResourceRegistry;
  readonly logger: Logger;
  /** Has the gateways answer these challenges, and no others; resolves when they do. */
  readonly answer: (challenges: readonly OwnedChallenge[]) => Promise<void>;
  /** Why a namespace cannot prove that a host is its own; undefined: it can. */
  readonly proofProblem: (namespace: string, host: string) => string | undefined;
  /** After a failure: the first wait, which doubles up to an hour. */
  readonly retryMs?: number;
  /** Where the URLs of ACME servers may lead. */
  readonly fetchPolicy: FetchPolicy | undefined;
}

/** A challenge of a Certificate: only Gateways of its namespace that own the host answer it. */
export interface OwnedChallenge extends HttpChallenge {
  readonly namespace: string;
}

interface Entry {
  readonly backoff: Backoff;
  timer: NodeJS.Timeout | undefined;
  isWorking: boolean;
  /** Something has changed while it was worked on. */
  isStale: boolean;
}

interface Ready {
  readonly isReady: boolean;
  readonly reason: string;
  readonly message: string;
  readonly notAfter?: Date;
  readonly renewalTime?: Date;
}

const group = 'cert-manager.io';
const manager = 'mizzen-certificates';
const context = { manager, origin: { source: 'api', name: manager } } as const;
/** Account keys of ClusterIssuers, which have no namespace. */
const clusterNamespace = 'mizzen-system';
const annotations = { certificate: `${group}/certificate-name`, issuer: `${group}/issuer-name`, issuerKind: `${group}/issuer-kind` } as const;
const mostRetryMs = 3_600_000;

/**
 * Certificates for gateways from ACME servers, by cert-manager's kinds: for each Certificate there is a Secret whose certificate is renewed before it ends. One that is good is left alone,
 * whatever else is wrong.
 */
export class CertificateController {
  readonly #options: CertificateControllerOptions;
  readonly #abort: AbortController;
  readonly #entries: Map<string, Entry>;
  readonly #clients: Map<string, AcmeClient>;
  readonly #challenges: Map<string, readonly OwnedChallenge[]>;
  #stopWatching: (() => void) | undefined;

  constructor(options: CertificateControllerOptions) {
    this.#options = options;
    this.#abort = new AbortController();
    this.#entries = new Map();
    this.#clients = new Map();
    this.#challenges = new Map();
    this.#stopWatching = undefined;
  }

  async start(): Promise<void> {
    const { store } = this.#options.registry;
    const { items, revision } = await store.list(group, 'Certificate');
    this.#stopWatching = store.watch(revision, (change) => this.#changed(change));
    for (const { key } of items) this.#look(`${key.namespace}/${key.name}`);
  }

  close(): void {
    this.#abort.abort();
    this.#stopWatching?.();
    for (const { timer } of this.#entries.values()) clearTimeout(timer);
  }

  #changed(change: Change): void {
    const { key, resource } = change.stored;
    if (key.group === group && key.kind === 'Certificate') {
      const name = `${key.namespace}/${key.name}`;
      if (change.type === 'deleted') {
        clearTimeout(this.#entries.get(name)?.timer);
        this.#entries.delete(name);
        return;
      }
      if (change.type === 'modified' && change.previous?.resource.metadata.generation === resource.metadata.generation) return;
      this.#entries.get(name)?.backoff.reset();
      return this.#look(name);
    }
    const isIssuer = key.group === group && (change.type !== 'modified' || change.previous?.resource.metadata.generation !== resource.metadata.generation);
    const isOurSecret = key.group === '' && key.kind === 'Secret' && change.type === 'deleted';
    if (isIssuer) this.#clients.clear();
    if (!isIssuer && !isOurSecret) return;
    for (const [name, { backoff }] of this.#entries) {
      backoff.reset();
      this.#look(name);
    }
  }

  #look(name: string): void {
    let entry = this.#entries.get(name);
    if (entry === undefined) {
      entry = { backoff: new Backoff(this.#options.retryMs ?? 10_000, mostRetryMs), timer: undefined, isWorking: false, isStale: false };
      this.#entries.set(name, entry);
    }
    clearTimeout(entry.timer);
    if (entry.isWorking) entry.isStale = true;
    else {
      const working = entry;
      boundary.start(
        () => this.#work(name, working),
        () => this.#lookLater(name, working),
      );
    }
  }

  async #work(name: string, entry: Entry): Promise<void> {
    entry.isWorking = true;
    entry.isStale = false;
    let waitMs: number;
    try {
      boundary.enter();
      const renewalTime = await this.#reconcile(name);
      entry.backoff.reset();
      waitMs = renewalTime === undefined ? maxTimerMs : renewalTime.getTime() - Date.now();
    } catch (error) {
      if (this.#abort.signal.aborted) return;
      boundary.unexpected(error);
      waitMs = entry.backoff.nextMs();
      this.#options.logger.warn('a certificate cannot be had; it will be tried again', {
        certificate: name,
        inSeconds: Math.round(waitMs / 1_000),
        reason: messageOf(error),
      });
      await this.#setStatus(name, { isReady: false, reason: 'Failed', message: messageOf(error) });
    }
    entry.isWorking = false;
    if (this.#abort.signal.aborted || this.#entries.get(name) !== entry) return;
    if (entry.isStale) return this.#look(name);
    this.#lookAfter(waitMs, name, entry);
  }

  /** After an exception outside the reconciliation itself. */
  #lookLater(name: string, entry: Entry): void {
    entry.isWorking = false;
    if (!this.#abort.signal.aborted && this.#entries.get(name) === entry) this.#lookAfter(entry.backoff.nextMs(), name, entry);
  }

  #lookAfter(waitMs: number, name: string, entry: Entry): void {
    entry.timer = boundary
      .after(
        waitMs,
        () => this.#look(name),
        () => this.#lookLater(name, entry),
      )
      .unref();
  }

  /** Resolves to when the certificate has to be renewed; undefined: there is none wanted. Throws Error with why there is no good one. */
  async #reconcile(name: string): Promise<Date | undefined> {
    const { registry, logger } = this.#options;
    const stored = await this.#get('Certificate', name);
    if (stored === undefined) return undefined;
    const spec = stored.resource.spec as CertificateSpec;
    const { namespace } = stored.key;
    const secretKey = { group: '', kind: 'Secret', namespace, name: spec.secretName! };
    const secret = (await registry.store.get(secretKey))?.resource;
    const current = secret && certificateIn(secret);
    if (current !== undefined && fits(current, secret!, stored.resource)) {
      const renewalTime = renewalOf(current, spec);
      if (renewalTime.getTime() > Date.now()) {
        await this.#setStatus(name, {
          isReady: true,
          reason: 'Ready',
          message: 'Certificate is up to date and has not expired',
          notAfter: new Date(current.validTo),
          renewalTime,
        });
        return renewalTime;
      }
    }
    if (secret !== undefined && secret.metadata.annotations?.[annotations.certificate] !== stored.key.name)
      throw new MizzenError(
        'certificate-not-issued',
        `the Secret ${spec.secretName} is there already and was not made for this Certificate: remove it, or name another`,
      );
    if (current === undefined) await this.#setStatus(name, { isReady: false, reason: 'Issuing', message: 'the certificate is being asked for' });
    // Before the order: the account of a ClusterIssuer may still have another namespace's proof of the host, and the server would ask for no other.
    for (const host of spec.dnsNames!) {
      const problem = this.#options.proofProblem(namespace, host.toLowerCase());
      if (problem !== undefined) throw new MizzenError('certificate-not-issued', problem);
    }
    const client = await this.#clientOf(spec, namespace);
    const { key, csr } = await signingRequest(spec);
    let chain: string;
    try {
      chain = await client.certificate(spec.dnsNames!, csr, async (challenges) => {
        this.#challenges.set(
          name,
          challenges.map((challenge) => ({ ...challenge, namespace })),
        );
        await this.#answer();
      });
    } finally {
      this.#challenges.delete(name);
      if (!this.#abort.signal.aborted) await this.#answer();
    }
    const leaf = new X509Certificate(chain);
    if (!leaf.checkPrivateKey(createPrivateKey(key)) || !coversNames(leaf, spec.dnsNames!))
      throw new MizzenError('certificate-not-issued', 'the server has sent a certificate that was not asked for');
    const { name: issuer = '', kind = 'Issuer' } = spec.issuerRef ?? {};
    const { labels = {}, annotations: more = {} } = spec.secretTemplate ?? {};
    const value = {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: {
        name: spec.secretName!,
        labels,
        annotations: { ...more, [annotations.certificate]: stored.key.name, [annotations.issuer]: issuer, [annotations.issuerKind]: kind },
      },
      type: 'kubernetes.io/tls',
      data: { 'tls.crt': base64(chain), 'tls.key': base64(key) },
    };
    await registry.apply(findKind('', 'Secret')!, namespace, spec.secretName!, value, true, context);
    const renewalTime = renewalOf(leaf, spec);
    logger.info('a certificate has been issued', { certificate: name, names: spec.dnsNames!.join(', '), until: new Date(leaf.validTo).toISOString() });
    await this.#setStatus(name, {
      isReady: true,
      reason: 'Ready',
      message: 'Certificate is up to date and has not expired',
      notAfter: new Date(leaf.validTo),
      renewalTime,
    });
    return renewalTime;
  }

  async #answer(): Promise<void> {
    await this.#options.answer([...this.#challenges.values()].flat());
  }

  async #clientOf({ issuerRef }: CertificateSpec, namespace: string): Promise<AcmeClient> {
    const { kind = 'Issuer', name = '' } = issuerRef ?? {};
    const isCluster = kind === 'ClusterIssuer';
    const at = isCluster ? `/${name}` : `${namespace}/${name}`;
    const issuer = await this.#get(kind, at);
    if (issuer === undefined) throw new MizzenError('certificate-not-issued', `there is no ${kind} ${name}${isCluster ? '' : ` in namespace ${namespace}`}`);
    const known = this.#clients.get(`${kind} ${at}`);
    if (known !== undefined) return known;
    const { server, email, caBundle, privateKeySecretRef, externalAccountBinding } = (issuer.resource.spec as CertificateIssuerSpec).acme!;
    const secretNamespace = isCluster ? clusterNamespace : namespace;
    const client = new AcmeClient({
      policy: this.#options.fetchPolicy,
      ...{ server: server!, email, signal: this.#abort.signal, roots: caBundle === undefined ? undefined : Buffer.from(caBundle, 'base64').toString('utf8') },
      key: await this.#accountKey(secretNamespace, privateKeySecretRef!.name!, privateKeySecretRef!.key ?? 'tls.key'),
      binding: externalAccountBinding && {
        keyId: externalAccountBinding.keyID ?? '',
        key: Buffer.from(
          await this.#secretValue(secretNamespace, externalAccountBinding.keySecretRef?.name ?? '', externalAccountBinding.keySecretRef?.key ?? 'secret'),
          'base64url',
        ),
      },
    });
    const condition = { type: 'Ready', observedGeneration: issuer.resource.metadata.generation };
    try {
      const uri = await client.register();
      await this.#write(kind, at, (before) => ({
        acme: { uri, lastRegisteredEmail: email ?? '' },
        conditions: [
          dated({ ...condition, status: 'True', reason: 'ACMEAccountRegistered', message: 'The ACME account was registered with the ACME server' }, before),
        ],
      }));
    } catch (error) {
      await this.#write(kind, at, (before) => ({
        conditions: [dated({ ...condition, status: 'False', reason: 'ErrRegisterACMEAccount', message: messageOf(error) }, before)],
      }));
      throw error;
    }
    this.#clients.set(`${kind} ${at}`, client);
    return client;
  }

  /** Made where there is none. */
  async #accountKey(namespace: string, name: string, field: string): Promise<KeyObject> {
    const stored = await this.#options.registry.store.get({ group: '', kind: 'Secret', namespace, name });
    if (stored !== undefined) {
      const key = createPrivateKey(await this.#secretValue(namespace, name, field));
      if (key.asymmetricKeyDetails?.namedCurve !== 'prime256v1')
        throw new MizzenError('certificate-not-issued', `the account's key in the Secret ${namespace}/${name} has to be ECDSA P-256`);
      return key;
    }
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const pem = privateKey.export({ format: 'pem', type: 'pkcs8' }) as string;
    const value = { apiVersion: 'v1', kind: 'Secret', metadata: { name }, type: 'Opaque', data: { [field]: base64(pem) } };
    await this.#options.registry.create(findKind('', 'Secret')!, namespace, value, context);
    return privateKey;
  }

  async #secretValue(namespace: string, name: string, field: string): Promise<string> {
    const stored = await this.#options.registry.store.get({ group: '', kind: 'Secret', namespace, name });
    const value = (stored?.resource['data'] as Record<string, string> | undefined)?.[field];
    if (value === undefined) throw new MizzenError('certificate-not-issued', `there is no Secret ${namespace}/${name} with the key ${field}`);
    return Buffer.from(value, 'base64').toString('utf8');
  }

  /** `name`: `namespace/name`. */
  async #get(kind: string, name: string): Promise<StoredResource | undefined> {
    const [namespace = '', own = ''] = name.split('/');
    return this.#options.registry.store.get({ group, kind, namespace, name: own });
  }

  async #setStatus(name: string, { isReady, reason, message, notAfter, renewalTime }: Ready): Promise<void> {
    await this.#write('Certificate', name, (before, resource) => ({
      ...(notAfter ? { notAfter: notAfter.toISOString() } : { ...(before['notAfter'] ? { notAfter: before['notAfter'] } : {}) }),
      ...(renewalTime ? { renewalTime: renewalTime.toISOString() } : {}),
      conditions: [dated({ type: 'Ready', status: isReady ? 'True' : 'False', reason, message, observedGeneration: resource.metadata.generation }, before)],
    }));
  }

  async #write(
    kindName: string,
    name: string,
    make: (before: Readonly<Record<string, unknown>>, resource: Resource) => Readonly<Record<string, unknown>>,
  ): Promise<void> {
    const kind: Kind = findKind(group, kindName)!;
    const [namespace = '', own = ''] = name.split('/');
    try {
      const live = await this.#get(kindName, name);
      const before = (live?.resource.status ?? {}) as Record<string, unknown>;
      if (live === undefined || isDeepStrictEqual(make(before, live.resource), before)) return;
      await this.#options.registry.change(
        kind,
        namespace,
        own,
        (resource) => ({ ...resource, status: make((resource.status ?? {}) as Record<string, unknown>, resource) }),
        context,
        'status',
      );
    } catch (error) {
      this.#options.logger.debug('a status could not be written', { object: `${kindName} ${name}`, error: messageOf(error) });
    }
  }
}

const base64 = (text: string) => Buffer.from(text).toString('base64');

interface Condition {
  readonly type: string;
  readonly status: string;
  readonly [field: string]: unknown;
}

/** With the time since when it is so. */
function dated(condition: Condition, before: Readonly<Record<string, unknown>>): Condition {
  const known = (before['conditions'] as readonly Condition[] | undefined)?.find(({ type }) => type === condition.type);
  return {
    ...condition,
    lastTransitionTime: known?.status === condition.status ? known['lastTransitionTime'] : new Date().toISOString().replace(/\.\d+Z$/, 'Z'),
  };
}

/** The certificate of a Secret, if it is one and belongs to the key beside it. */
function certificateIn(secret: Resource): X509Certificate | undefined {
  const data = (secret['data'] ?? {}) as Record<string, string>;
  try {
    const certificate = new X509Certificate(Buffer.from(data['tls.crt'] ?? '', 'base64'));
    return certificate.checkPrivateKey(createPrivateKey(Buffer.from(data['tls.key'] ?? '', 'base64'))) ? certificate : undefined;
  } catch {
    return undefined;
  }
}

/** Whether it is what the Certificate says now. */
function fits(certificate: X509Certificate, secret: Resource, wanted: Resource): boolean {
  const spec = wanted.spec as CertificateSpec;
  const made = secret.metadata.annotations ?? {};
  const isByIssuer = made[annotations.issuer] === spec.issuerRef?.name && made[annotations.issuerKind] === (spec.issuerRef?.kind ?? 'Issuer');
  return made[annotations.certificate] === wanted.metadata.name && isByIssuer && coversNames(certificate, spec.dnsNames!);
}

function coversNames(certificate: X509Certificate, names: readonly string[]): boolean {
  const found = new Set((certificate.subjectAltName ?? '').split(', ').flatMap((name) => (name.startsWith('DNS:') ? [name.slice(4).toLowerCase()] : [])));
  return names.every((name) => found.has(name.toLowerCase()));
}

function renewalOf(certificate: X509Certificate, { renewBefore, renewBeforePercentage }: CertificateSpec): Date {
  const [from, until] = [Date.parse(certificate.validFrom), Date.parse(certificate.validTo)];
  const life = until - from;
  const before = renewBefore === undefined ? (life * (renewBeforePercentage ?? 100 / 3)) / 100 : (parseDurationMs(renewBefore) ?? 0);
  // More than its whole life would mean for ever.
  return new Date(until - Math.min(before, life * 0.9));
}

async function signingRequest({ dnsNames, commonName, privateKey }: CertificateSpec): Promise<{ key: string; csr: Buffer }> {
  const { algorithm = 'RSA', size } = privateKey ?? {};
  const isRsa = algorithm === 'RSA';
  const hash = size === 384 ? 'SHA-384' : 'SHA-256';
  const keys = await (isRsa
    ? webcrypto.subtle.generateKey({ name: 'RSASSA-PKCS1-v1_5', modulusLength: size ?? 2048, publicExponent: new Uint8Array([1, 0, 1]), hash }, true, [
        'sign',
        'verify',
      ])
    : webcrypto.subtle.generateKey({ name: 'ECDSA', namedCurve: size === 384 ? 'P-384' : 'P-256' }, true, ['sign', 'verify']));
  const request = await x509.Pkcs10CertificateRequestGenerator.create(
    {
      ...{
        keys,
        name: commonName === undefined ? '' : `CN=${commonName}`,
        signingAlgorithm: isRsa ? { name: 'RSASSA-PKCS1-v1_5', hash } : { name: 'ECDSA', hash },
      },
      extensions: [new x509.SubjectAlternativeNameExtension(dnsNames!.map((value) => ({ type: 'dns' as const, value })))],
    },
    webcrypto,
  );
  return { key: await exportKey(keys.privateKey), csr: Buffer.from(request.rawData) };
}
