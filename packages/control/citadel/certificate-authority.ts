import 'reflect-metadata';
import { createHash, createPublicKey, type KeyObject, webcrypto, type X509Certificate } from 'node:crypto';
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { MizzenError, messageOf, pemCertificates } from '@mizzen/common';
import { backdateMs, validFromMs } from '@mizzen/common/certificate-time';
import * as x509 from '@peculiar/x509';
import { exportKey, type Generation, openGeneration, parseCertificate, serialNumber } from './ca-generation.ts';
import type { IssuedCertificate, WorkloadSigner } from './certificate-issuer.ts';
import { LeafTemplate } from './leaf-template.ts';
import { readPrivateFile, writePrivateFile } from './private-file.ts';
import { readSigningRequest } from './signing-request.ts';
import { type Identity, spiffeUri } from './spiffe-identity.ts';

type CryptoKey = webcrypto.CryptoKey;

const keyAlgorithm = { name: 'ECDSA', namedCurve: 'P-256' } as const;

export const certificateLimits = {
  defaultValiditySeconds: 24 * 3600,
  maxValiditySeconds: 90 * 24 * 3600,
  minValiditySeconds: 10,
} as const;

/**
 * Where a change of roots stands: `steady`, one root; `prepared`, the next one is trusted beside it but signs nothing; `switched`, the next one signs, and
 * the one before is still trusted.
 */
export type RotationPhase = 'steady' | 'prepared' | 'switched';

/** Which generations there are, in `rotation.json`. */
interface RotationState {
  readonly signing: string;
  /** The older first. */
  readonly trusted: readonly string[];
}

export interface RootStatus {
  readonly generation: string;
  readonly subject: string;
  /** SHA-256 of the certificate, hex. */
  readonly fingerprint: string;
  readonly notAfter: string;
  readonly signs: boolean;
}

const firstGeneration = 'first';

/**
 * The mesh's certificate authority: a root that only signs the intermediate, and the intermediate that signs workloads. A user's own root or intermediate
 * is used by putting its files into `directory`, or into `directory/next` for a change of roots.
 */
export class CertificateAuthority implements WorkloadSigner {
  readonly trustDomain: string;
  readonly #directory: string;
  readonly #now: () => number;
  readonly #extraRoots: readonly string[];
  #state: RotationState;
  #generations: ReadonlyMap<string, Generation>;
  readonly #templates: WeakMap<Generation, LeafTemplate>;
  #onChange: () => Promise<void>;

  private constructor(
    trustDomain: string,
    directory: string,
    state: RotationState,
    generations: ReadonlyMap<string, Generation>,
    extraRoots: readonly string[],
    now: () => number,
  ) {
    this.trustDomain = trustDomain;
    this.#directory = directory;
    this.#state = state;
    this.#generations = generations;
    this.#extraRoots = extraRoots;
    this.#now = now;
    this.#onChange = async () => {};
    this.#templates = new WeakMap();
  }

  /** Opens the authority in `directory`, making what is missing. */
  static async open(directory: string, trustDomain: string, now: () => number = Date.now): Promise<CertificateAuthority> {
    const state = readState(directory);
    const generations = new Map<string, Generation>();
    for (const name of state.trusted) {
      const folder = folderOf(directory, name);
      // A change of roots that was cut off after it had been decided.
      if (name !== firstGeneration && !existsSync(folder)) takeGiven(directory, folder);
      generations.set(name, await openGeneration(folder, name, trustDomain, now()));
    }
    const extra = join(directory, 'extra-roots.pem');
    const extraRoots = pemCertificates(readPrivateFile(extra) ?? '').map((pem) => parseCertificate(pem, extra).toString('pem'));
    return new CertificateAuthority(trustDomain, directory, state, generations, extraRoots, now);
  }

  get #signing(): Generation {
    return this.#generations.get(this.#state.signing)!;
  }

  /** All roots that the mesh trusts, PEM: the one that signs first, then others that are being changed to or from, and those in `extra-roots.pem`. */
  get trustBundle(): string {
    const others = this.#state.trusted.filter((name) => name !== this.#state.signing).map((name) => this.#generations.get(name)!.root.toString('pem'));
    return `${[this.#signing.root.toString('pem'), ...others, ...this.#extraRoots].join('\n')}\n`;
  }

  get rootCertificate(): string {
    return `${this.#signing.root.toString('pem')}\n`;
  }

  get phase(): RotationPhase {
    const { signing, trusted } = this.#state;
    if (trusted.length === 1) return 'steady';
    return trusted[0] === signing ? 'prepared' : 'switched';
  }

  get signingGeneration(): string {
    return this.#state.signing;
  }

  roots(): RootStatus[] {
    return this.#state.trusted.map((generation) => {
      const { root } = this.#generations.get(generation)!;
      const fingerprint = createHash('sha256').update(Buffer.from(root.rawData)).digest('hex');
      return { generation, subject: root.subject, fingerprint, notAfter: root.notAfter.toISOString(), signs: generation === this.#state.signing };
    });
  }

  /** The generation that has signed a workload's certificate. */
  generationOf(certificate: X509Certificate): string | undefined {
    for (const { name, intermediate } of this.#generations.values()) {
      try {
        if (certificate.verify(publicKeyOf(intermediate))) return name;
      } catch {
        // A key of another type.
      }
    }
    return undefined;
  }

  /** Lists of revoked certificates, one of each generation that is trusted, PEM (RFC 5280 section 5). */
  async revocationLists(
    revoked: readonly { readonly serial: string; readonly generation: string; readonly revokedAt: string }[],
    seconds: number,
  ): Promise<string> {
    const lists = [...this.#generations.values()].map(({ name, intermediate, signing }) =>
      x509.X509CrlGenerator.create({
        issuer: intermediate.subjectName.toJSON(),
        thisUpdate: new Date(this.#now() - backdateMs),
        nextUpdate: new Date(this.#now() + seconds * 1000),
        signingKey: signing.key,
        signingAlgorithm: signing.algorithm as Parameters<typeof x509.X509CrlGenerator.create>[0]['signingAlgorithm'],
        entries: revoked
          .filter(({ generation }) => generation === name)
          .map(({ serial, revokedAt }) => ({ serialNumber: serial, revocationDate: new Date(revokedAt), reason: x509.X509CrlReason.keyCompromise })),
      }),
    );
    // The label that OpenSSL knows (RFC 7468 section 7); the library writes another.
    return (await Promise.all(lists)).map(({ rawData }) => `${x509.PemConverter.encode(rawData, 'X509 CRL')}\n`).join('');
  }

  /** Told when what is trusted or what signs has changed; the change is over when it resolves. */
  onChange(listener: () => Promise<void>): void {
    this.#onChange = listener;
  }

  /** Begins a change of roots: the next one is trusted from now on. Its files are those in `next/`, or made. Throws MizzenError `wrong-phase`. */
  async prepare(): Promise<void> {
    this.#expect('steady', 'a change of roots is under way already');
    const name = Date.now().toString(36);
    const folder = folderOf(this.#directory, name);
    const given = join(this.#directory, 'next');
    // Looked at before anything changes: what cannot be used is refused where it lies.
    if (existsSync(given)) await openGeneration(given, name, this.trustDomain, this.#now());
    const state = { signing: this.#state.signing, trusted: [...this.#state.trusted, name] };
    writeState(this.#directory, state);
    takeGiven(this.#directory, folder);
    const generation = await openGeneration(folder, name, this.trustDomain, this.#now());
    await this.#become(state, new Map([...this.#generations, [name, generation]]));
  }

  /** The next root signs from now on; the one before is still trusted. */
  async switch(): Promise<void> {
    this.#expect('prepared', 'there is no next root to switch to');
    const state = { ...this.#state, signing: this.#state.trusted.at(-1)! };
    writeState(this.#directory, state);
    await this.#become(state, this.#generations);
  }

  /** The root before is no longer trusted, and its keys are gone. */
  async finish(): Promise<void> {
    this.#expect('switched', 'there is no root before to give up');
    const { signing, trusted } = this.#state;
    const state = { signing, trusted: [signing] };
    writeState(this.#directory, state);
    await this.#become(state, new Map([[signing, this.#signing]]));
    for (const name of trusted)
      if (name !== signing)
        for (const file of ['root-key.pem', 'ca-key.pem', 'root-cert.pem', 'ca-cert.pem', 'cert-chain.pem'])
          rmSync(join(folderOf(this.#directory, name), file), { force: true });
  }

  #expect(phase: RotationPhase, problem: string): void {
    if (this.phase !== phase)
      throw new MizzenError('wrong-phase', `${problem}: the authority is ${this.phase}. \`mizzen ca status\` tells where the change stands.`);
  }

  async #become(state: RotationState, generations: ReadonlyMap<string, Generation>): Promise<void> {
    this.#state = state;
    this.#generations = generations;
    await this.#onChange();
  }

  /**
   * Signs the public key of a workload's CSR (PEM) for `identity`. Everything else that the CSR asks for is ignored: who somebody is was
   * decided by the token or certificate that came with it. Throws MizzenError `invalid-csr`.
   */
  async issue(csrPem: string, identity: Identity, validitySeconds: number): Promise<IssuedCertificate> {
    const csr = await readSigningRequest(csrPem);
    const requested = validitySeconds > 0 ? validitySeconds : certificateLimits.defaultValiditySeconds;
    const seconds = Math.min(Math.max(requested, certificateLimits.minValiditySeconds), certificateLimits.maxValiditySeconds);
    const generation = this.#signing;
    let template = this.#templates.get(generation);
    if (template === undefined) this.#templates.set(generation, (template = await this.#templateOf(generation, csr.publicKey)));
    const serial = serialNumber();
    const notAfter = this.#endAfter(seconds);
    const leaf = template.make({
      publicKey: csr.publicKey.rawData,
      serial,
      notBefore: new Date(validFromMs(this.#now(), notAfter.getTime() - this.#now())),
      notAfter,
      uri: spiffeUri(identity),
    });
    return { chain: [leaf, ...generation.chain], serial, notAfter };
  }

  /** A certificate with its key, made here: for the control plane's own servers, and for workloads that are given theirs (SPIFFE Workload API). */
  async issueServer(
    names: { readonly dns: readonly string[]; readonly ip: readonly string[]; readonly identity?: Identity },
    validitySeconds: number,
  ): Promise<{ cert: string; key: string; notAfter: Date }> {
    const keys = await webcrypto.subtle.generateKey(keyAlgorithm, true, ['sign', 'verify']);
    const san = new x509.SubjectAlternativeNameExtension([
      ...names.dns.map((value) => ({ type: 'dns' as const, value })),
      ...names.ip.map((value) => ({ type: 'ip' as const, value })),
      ...(names.identity ? [{ type: 'url' as const, value: spiffeUri(names.identity) }] : []),
    ]);
    const { chain, notAfter } = await this.#sign(keys.publicKey, validitySeconds, [san], names.dns[0] ?? '');
    return { cert: chain.join('\n'), key: await exportKey(keys.privateKey), notAfter };
  }

  #endAfter(seconds: number): Date {
    const end = Math.min(this.#now() + seconds * 1000, this.#signing.intermediate.notAfter.getTime());
    return new Date(Math.ceil(end / 1000) * 1000);
  }

  /** Of any name and key: those are what differs. */
  async #templateOf({ signing }: Generation, publicKey: x509.PublicKey): Promise<LeafTemplate> {
    const { chain } = await this.#sign(
      publicKey,
      60,
      [new x509.SubjectAlternativeNameExtension([{ type: 'url', value: `spiffe://${this.trustDomain}/` }], true)],
      '',
    );
    return new LeafTemplate(new x509.X509Certificate(chain[0]!).rawData, signing.node, signing.hash);
  }

  async #sign(publicKey: x509.PublicKey | CryptoKey, seconds: number, extensions: x509.Extension[], commonName: string): Promise<IssuedCertificate> {
    const { intermediate, chain, signing } = this.#signing;
    const notAfter = this.#endAfter(seconds);
    const serial = serialNumber();
    const leaf = await x509.X509CertificateGenerator.create({
      serialNumber: serial,
      subject: commonName ? [{ O: [this.trustDomain] }, { CN: [commonName] }] : [{ O: [this.trustDomain] }],
      issuer: intermediate.subjectName.toJSON(),
      notBefore: new Date(validFromMs(this.#now(), notAfter.getTime() - this.#now())),
      notAfter,
      publicKey: publicKey,
      signingKey: signing.key,
      signingAlgorithm: signing.algorithm!,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
        await x509.AuthorityKeyIdentifierExtension.create(intermediate.publicKey),
        ...extensions,
      ],
    });
    return { chain: [`${leaf.toString('pem')}\n`, ...chain], serial, notAfter };
  }
}

function readState(directory: string): RotationState {
  const path = join(directory, 'rotation.json');
  const text = readPrivateFile(path);
  if (text === undefined) return { signing: firstGeneration, trusted: [firstGeneration] };
  try {
    const { signing, trusted } = JSON.parse(text) as Partial<RotationState>;
    if (typeof signing === 'string' && Array.isArray(trusted) && trusted.includes(signing) && trusted.every((name) => /^[a-z0-9]+$/.test(name)))
      return { signing, trusted };
    throw new Error('it names no generations');
  } catch (error) {
    throw new MizzenError('unreadable-file', `where the change of roots stands cannot be read (${messageOf(error)}). Restore the file.`, path);
  }
}

function writeState(directory: string, state: RotationState): void {
  writePrivateFile(join(directory, 'rotation.json'), `${JSON.stringify(state)}\n`);
}

/** Puts what an operator has laid into `next/` where the generation's files are. */
function takeGiven(directory: string, folder: string): void {
  const given = join(directory, 'next');
  if (!existsSync(given)) return;
  mkdirSync(dirname(folder), { recursive: true, mode: 0o700 });
  renameSync(given, folder);
}

/** The first generation lies where an operator puts files. */
function folderOf(directory: string, generation: string): string {
  return generation === firstGeneration ? directory : join(directory, 'generations', generation);
}

const publicKeys = new WeakMap<x509.X509Certificate, KeyObject>();

function publicKeyOf(certificate: x509.X509Certificate): KeyObject {
  let key = publicKeys.get(certificate);
  if (key === undefined) publicKeys.set(certificate, (key = createPublicKey({ key: Buffer.from(certificate.publicKey.rawData), format: 'der', type: 'spki' })));
  return key;
}
