import { X509Certificate } from 'node:crypto';
import type { Problem } from '../resource.ts';
import type { CertificateIssuerSpec, CertificateSpec } from '../types/certificate.ts';
import { collect, durationProblem, hostProblem, invalid } from './checks.ts';

export function certificateIssuerProblems(spec: CertificateIssuerSpec): Problem[] {
  const { acme } = spec;
  const others = ['ca', 'selfSigned', 'vault', 'venafi'].filter((type) => spec[type] !== undefined);
  if (others.length > 0) return [invalid(`spec.${others[0]}`, 'issuers of this type are not served: acme is')];
  if (acme === undefined) return [invalid('spec.acme', 'is needed: issuers of other types are not served')];
  const problems: Problem[] = [];
  if (!URL.canParse(acme.server ?? '') || !acme.server?.startsWith('https:'))
    problems.push(invalid('spec.acme.server', 'must be the https URL of an ACME directory, such as https://acme-v02.api.letsencrypt.org/directory'));
  if (!acme.privateKeySecretRef?.name) problems.push(invalid('spec.acme.privateKeySecretRef.name', 'is needed: where the account’s key is kept'));
  for (const [i, solver] of (acme.solvers ?? []).entries())
    if (solver.http01 === undefined) problems.push(invalid(`spec.acme.solvers[${i}]`, 'only http01 is served, by the mesh’s own gateways'));
  if (!acme.solvers?.length) problems.push(invalid('spec.acme.solvers', 'at least one is needed: [{ http01: {} }]'));
  if (acme.caBundle !== undefined) {
    try {
      void new X509Certificate(Buffer.from(acme.caBundle, 'base64'));
    } catch {
      problems.push(invalid('spec.acme.caBundle', 'must be certificates in PEM form, in base64'));
    }
  }
  return problems;
}

export function certificateProblems(spec: CertificateSpec): Problem[] {
  const { secretName, dnsNames = [], commonName, issuerRef, renewBefore, privateKey } = spec;
  const problems = [...collect(durationProblem(renewBefore, 'spec.renewBefore'))];
  if (!secretName) problems.push(invalid('spec.secretName', 'is needed: where the certificate is put'));
  if (!issuerRef?.name) problems.push(invalid('spec.issuerRef.name', 'is needed: who issues it'));
  if (!['Issuer', 'ClusterIssuer', undefined].includes(issuerRef?.kind) || !['cert-manager.io', '', undefined].includes(issuerRef?.group))
    problems.push(invalid('spec.issuerRef', 'must be an Issuer or ClusterIssuer of cert-manager.io'));
  if (dnsNames.length === 0) problems.push(invalid('spec.dnsNames', 'at least one name is needed'));
  for (const [i, name] of dnsNames.entries()) {
    if (name.startsWith('*.')) problems.push(invalid(`spec.dnsNames[${i}]`, 'wildcards need the challenge dns01, which is not served'));
    else problems.push(...collect(hostProblem(name, `spec.dnsNames[${i}]`, false)));
  }
  if (commonName !== undefined && !dnsNames.includes(commonName)) problems.push(invalid('spec.commonName', 'must be one of spec.dnsNames'));
  for (const field of ['ipAddresses', 'uris', 'emailAddresses', 'otherNames', 'literalSubject', 'nameConstraints'])
    if (spec[field] !== undefined) problems.push(invalid(`spec.${field}`, 'ACME servers give certificates of DNS names only'));
  if (spec.isCA) problems.push(invalid('spec.isCA', 'ACME gives no certificates of authorities'));
  const { algorithm = 'RSA', size } = privateKey ?? {};
  const sizes: Readonly<Record<string, readonly number[]>> = { RSA: [2048, 3072, 4096], ECDSA: [256, 384] };
  if (!Object.hasOwn(sizes, algorithm)) problems.push(invalid('spec.privateKey.algorithm', `${algorithm} is not taken: RSA or ECDSA`));
  else if (size !== undefined && !sizes[algorithm]!.includes(size))
    problems.push(invalid('spec.privateKey.size', `must be one of ${sizes[algorithm]!.join(', ')}`));
  return problems;
}
