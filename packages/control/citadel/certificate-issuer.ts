import type { X509Certificate } from 'node:crypto';
import { authorityProblem, intermediateProblem, MizzenError, messageOf, peerProblem } from '@mizzen/common';
import type * as x509 from '@peculiar/x509';
import { readSigningRequest } from './signing-request.ts';
import { certificatesIn } from './spiffe-bundle.ts';
import { type Identity, spiffeUri } from './spiffe-identity.ts';
import { uriNamesOf } from './subject-alt-names.ts';

/**
 * Somebody else who signs the certificates of the mesh's workloads: what a module for `mizzen control --issuer` exports as `default`. The control plane decides who somebody is, and
 * checks what it is given; a certificate for another identity or key, or that does not lead to `roots`, is never passed on.
 */
export interface CertificateIssuer {
  /** For logs and messages. */
  readonly name: string;
  /** Roots that its certificates lead to, PEM. */
  readonly roots: string;
  /** `csr`: PEM, its signature checked. Resolves to PEM: the leaf, then what lies between it and a root. */
  issue(csr: string, identity: Identity, validitySeconds: number): Promise<readonly string[]>;
  close?(): void;
}

export interface IssuedCertificate {
  /** PEM: the leaf, then what lies between it and the root. */
  readonly chain: readonly string[];
  readonly serial: string;
  readonly notAfter: Date;
}

/** Who signs for workloads: the mesh's own authority, or somebody else whose word is checked. */
export interface WorkloadSigner {
  /** The root that its certificates lead to, PEM. */
  readonly rootCertificate: string;
  /** Throws MizzenError. */
  issue(csrPem: string, identity: Identity, validitySeconds: number): Promise<IssuedCertificate>;
}

export class CheckedIssuer implements WorkloadSigner {
  readonly rootCertificate: string;
  readonly #issuer: CertificateIssuer;
  readonly #roots: readonly X509Certificate[];

  constructor(issuer: CertificateIssuer) {
    this.#issuer = issuer;
    this.#roots = certificatesIn(issuer.roots);
    const [first] = this.#roots;
    if (first === undefined) throw new MizzenError('unusable-issuer', `the issuer ${issuer.name} has no roots: its certificates could not be checked`);
    for (const root of this.#roots) {
      const weakness = authorityProblem(root);
      if (weakness !== undefined)
        throw new MizzenError('unusable-issuer', `the issuer ${issuer.name}: the root ${root.subject.replaceAll('\n', ', ')} ${weakness}`);
    }
    this.rootCertificate = first.toString();
  }

  async issue(csrPem: string, identity: Identity, validitySeconds: number): Promise<IssuedCertificate> {
    const csr = await readSigningRequest(csrPem);
    let chain: X509Certificate[];
    try {
      chain = (await this.#issuer.issue(csrPem, identity, validitySeconds)).flatMap((pem) => certificatesIn(pem));
    } catch (error) {
      throw new MizzenError('issuer-failed', `the issuer ${this.#issuer.name} gives no certificate: ${messageOf(error)}`);
    }
    const problem = this.#problemOf(chain, csr, identity);
    if (problem !== undefined) throw new MizzenError('issuer-failed', `the certificate of the issuer ${this.#issuer.name} is not used: ${problem}`);
    const [leaf] = chain;
    return { chain: chain.map((one) => one.toString()), serial: leaf!.serialNumber.toLowerCase(), notAfter: new Date(leaf!.validTo) };
  }

  #problemOf(chain: X509Certificate[], csr: x509.Pkcs10CertificateRequest, identity: Identity): string | undefined {
    // Some send the root, too.
    if (chain.length > 1 && this.#roots.some((root) => root.raw.equals(chain.at(-1)!.raw))) chain.pop();
    const [leaf] = chain;
    if (leaf === undefined) return 'there is none';
    if (!leaf.publicKey.export({ format: 'der', type: 'spki' }).equals(Buffer.from(csr.publicKey.rawData))) return 'it is for another key';
    const names = uriNamesOf(leaf.subjectAltName);
    if (names?.length !== 1 || leaf.subjectAltName !== `URI:${spiffeUri(identity)}`)
      return `it is for ${leaf.subjectAltName ?? 'nobody'}, and not for ${spiffeUri(identity)}`;
    if (leaf.ca) return 'it is that of an authority';
    const now = Date.now();
    if (Date.parse(leaf.validTo) <= now || Date.parse(leaf.validFrom) > now + 60_000) return `it is valid from ${leaf.validFrom} until ${leaf.validTo}`;
    for (const [i, one] of chain.entries()) {
      const weakness = i === 0 ? peerProblem(one) : intermediateProblem(one);
      if (weakness !== undefined) return `the certificate ${one.subject?.replaceAll('\n', ', ') ?? ''} in its chain ${weakness}`;
      const next = chain[i + 1];
      if (next === undefined) return this.#roots.some((root) => isSignedBy(one, root)) ? undefined : 'it does not lead to one of its roots';
      if (!next.ca || !isSignedBy(one, next)) return `its chain is broken at ${next.subject.replaceAll('\n', ', ')}`;
    }
    return undefined;
  }
}

function isSignedBy(certificate: X509Certificate, issuer: X509Certificate): boolean {
  try {
    return certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey);
  } catch {
    // A key of another type.
    return false;
  }
}
