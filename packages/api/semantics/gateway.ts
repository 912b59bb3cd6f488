import { getCiphers } from 'node:tls';
import { closestName } from '@mizzen/common';
import type { Problem } from '../resource.ts';
import type { GatewaySpec, ServerTlsSpec } from '../types/gateway.ts';
import { collect, hostProblem, invalid, portProblem } from './checks.ts';

const protocols = ['HTTP', 'HTTPS', 'GRPC', 'GRPC-WEB', 'HTTP2', 'MONGO', 'TCP', 'TLS'];

/** Rules of Istio's own validation of Gateway that can be decided from the object alone. */
export function gatewayProblems(spec: GatewaySpec): Problem[] {
  const problems: Problem[] = [];
  if (!spec.servers?.length) problems.push({ code: 'missing-field', path: 'spec.servers', message: 'at least one server is required' });
  const portNames = new Set<string>();
  spec.servers?.forEach((server, i) => {
    const path = `spec.servers[${i}]`;
    if (!server.port) problems.push({ code: 'missing-field', path: `${path}.port`, message: 'required field "port" is missing' });
    else {
      // Proxies know the route table of a server by this name: with one table for two servers, clients of one would reach the hosts of the other.
      if (server.port.name && portNames.has(server.port.name))
        problems.push(invalid(`${path}.port.name`, `the port name "${server.port.name}" is used by another server: port names are unique in a Gateway`));
      if (server.port.name) portNames.add(server.port.name);
      problems.push(...collect(portProblem(server.port.number, `${path}.port.number`)));
      if (!protocols.includes(server.port.protocol?.toUpperCase()))
        problems.push(invalid(`${path}.port.protocol`, `${JSON.stringify(server.port.protocol)} is no protocol. Allowed: ${protocols.join(', ')}`));
    }
    if (!server.hosts?.length) problems.push({ code: 'missing-field', path: `${path}.hosts`, message: 'at least one host is required, "*" for all' });
    server.hosts?.forEach((host, j) => {
      const withoutNamespace = host.includes('/') ? host.slice(host.indexOf('/') + 1) : host;
      problems.push(...collect(hostProblem(withoutNamespace, `${path}.hosts[${j}]`)));
    });
    const protocol = server.port?.protocol?.toUpperCase();
    const isTls = protocol === 'HTTPS' || protocol === 'TLS';
    if (isTls && !server.tls) problems.push({ code: 'missing-field', path: `${path}.tls`, message: `protocol ${protocol} needs tls settings` });
    if (server.tls && !server.tls.httpsRedirect && !isTls)
      problems.push(invalid(`${path}.tls`, `protocol ${protocol} takes no tls settings but httpsRedirect; did you mean protocol HTTPS?`));
    const mode = server.tls?.mode ?? 'SIMPLE';
    if (mode === 'AUTO_PASSTHROUGH')
      problems.push(
        invalid(
          `${path}.tls.mode`,
          'AUTO_PASSTHROUGH routes between clusters, which Mizzen does not: use PASSTHROUGH with a VirtualService that has tls routes',
        ),
      );
    if (
      isTls &&
      server.tls &&
      (mode === 'SIMPLE' || mode === 'MUTUAL' || mode === 'OPTIONAL_MUTUAL') &&
      !server.tls.credentialName &&
      !server.tls.credentialNames?.length &&
      !server.tls.tlsCertificates?.length &&
      !(server.tls.serverCertificate && server.tls.privateKey)
    ) {
      problems.push({
        code: 'missing-field',
        path: `${path}.tls.credentialName`,
        message: `mode ${mode} needs credentialName (a Secret), or serverCertificate and privateKey (files)`,
      });
    }
    if (isTls && server.tls) problems.push(...unenforcedProblems(server.tls, mode, `${path}.tls`), ...parameterProblems(server.tls, `${path}.tls`));
    // ISTIO_MUTUAL verifies clients by the mesh's roots; OPTIONAL_MUTUAL and MUTUAL need roots of their own.
    const { tls } = server;
    if (isTls && tls && (mode === 'MUTUAL' || mode === 'OPTIONAL_MUTUAL') && !namesClientRoots(tls))
      problems.push({
        code: 'missing-field',
        path: `${path}.tls.caCertificates`,
        message: `mode ${mode} needs caCertificates (a file), caCertCredentialName or credentialName (a Secret), by which clients are verified`,
      });
  });
  return problems;
}

type TlsField = Exclude<keyof ServerTlsSpec, 'mode' | 'httpsRedirect'>;
const certificateFields: readonly TlsField[] = ['serverCertificate', 'privateKey', 'tlsCertificates', 'credentialName', 'credentialNames'];
/** What is demanded of a client's certificate. */
const clientFields: readonly TlsField[] = ['subjectAltNames', 'verifyCertificateSpki', 'verifyCertificateHash', 'caCrl'];

/** Fields that the mode leaves without effect. Their writer would rely on a verification that does not take place. */
function unenforcedProblems(tls: ServerTlsSpec, mode: string, path: string): Problem[] {
  const isSet = (field: TlsField) => {
    const value = tls[field];
    return Array.isArray(value) ? value.length > 0 : Boolean(value);
  };
  const refuse = (fields: readonly TlsField[], why: string) => fields.filter(isSet).map((field) => invalid(`${path}.${field}`, why));
  if (mode === 'ISTIO_MUTUAL')
    return refuse(
      [...certificateFields, 'caCertificates', 'caCertCredentialName', 'caCrl', 'insecureSkipVerify'],
      'mode ISTIO_MUTUAL uses the certificates and roots of the mesh: leave it out, or use mode MUTUAL',
    );
  const sources = [tls.serverCertificate && tls.privateKey, tls.credentialName, tls.credentialNames?.length, tls.tlsCertificates?.length].filter(Boolean);
  return [
    ...(sources.length > 1
      ? [invalid(path, 'only one of credentialName, credentialNames, tlsCertificates, and serverCertificate with privateKey may be set')]
      : []),
    ...(mode === 'SIMPLE' || mode === 'PASSTHROUGH'
      ? refuse(clientFields, `mode ${mode} requests no certificate from clients, so this would not be verified: use mode MUTUAL`)
      : []),
  ];
}

/** TLS 1.2 is the minimum of the mesh, whatever `minProtocolVersion` says. */
const versions = ['TLSV1_0', 'TLSV1_1', 'TLSV1_2', 'TLSV1_3'];

function parameterProblems({ minProtocolVersion, maxProtocolVersion, cipherSuites = [] }: ServerTlsSpec, path: string): Problem[] {
  const problems: Problem[] = [];
  const rank = (version: string | undefined) => versions.indexOf(version ?? '');
  if (rank(maxProtocolVersion) >= 0 && rank(maxProtocolVersion) < Math.max(rank('TLSV1_2'), rank(minProtocolVersion)))
    problems.push(invalid(`${path}.maxProtocolVersion`, `${maxProtocolVersion} is below the minimum: TLSV1_2, or minProtocolVersion where that is higher`));
  for (const [i, suite] of cipherSuites.entries())
    for (const name of suite.replace(/^\[|\]$/g, '').split('|'))
      if (!knownCiphers.has(name)) {
        const near = closestName(name, [...knownCiphers]);
        problems.push(
          invalid(`${path}.cipherSuites[${i}]`, `${JSON.stringify(name.slice(0, 80))} is not a cipher suite${near ? `: did you mean ${near}?` : ''}`),
        );
      }
  return problems;
}

/** OpenSSL's names, in upper case. It ignores a name that it does not know, and would then offer its defaults. */
const knownCiphers = new Set(getCiphers().map((name) => name.toUpperCase()));

const namesClientRoots = (tls: ServerTlsSpec) =>
  Boolean(
    tls.credentialName ||
      tls.credentialNames?.length ||
      tls.caCertCredentialName ||
      tls.caCertificates ||
      tls.tlsCertificates?.some((one) => one.caCertificates),
  );
