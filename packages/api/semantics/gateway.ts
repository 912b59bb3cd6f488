import type { Problem } from '../resource.ts';
import type { GatewaySpec, ServerTlsSpec } from '../types/gateway.ts';
import { collect, hostProblem, invalid, portProblem } from './checks.ts';

const protocols = ['HTTP', 'HTTPS', 'GRPC', 'GRPC-WEB', 'HTTP2', 'MONGO', 'TCP', 'TLS'];

/** Rules of Istio's own validation of Gateway that can be decided from the object alone. */
export function gatewayProblems(spec: GatewaySpec): Problem[] {
  const problems: Problem[] = [];
  if (!spec.servers?.length) problems.push({ code: 'missing-field', path: 'spec.servers', message: 'at least one server is required' });
  spec.servers?.forEach((server, i) => {
    const path = `spec.servers[${i}]`;
    if (!server.port) problems.push({ code: 'missing-field', path: `${path}.port`, message: 'required field "port" is missing' });
    else {
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

const namesClientRoots = (tls: ServerTlsSpec) =>
  Boolean(
    tls.credentialName ||
      tls.credentialNames?.length ||
      tls.caCertCredentialName ||
      tls.caCertificates ||
      tls.tlsCertificates?.some((one) => one.caCertificates),
  );
