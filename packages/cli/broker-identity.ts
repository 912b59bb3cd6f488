import { readFileSync } from 'node:fs';
import type tls from 'node:tls';
import { type Logger, tlsDefaults } from '@mizzen/common';
import { checkProxyConfig } from '@mizzen/proxy';
import { ProxyCounters } from '@mizzen/proxy/telemetry/proxy-counters';
import { peerIdentityOf } from '@mizzen/proxy/tls/peer-identity';
import { workloadSecretName } from '@mizzen/proxy/tls/secret-names';
import { SecretStore } from '@mizzen/proxy/tls/secret-store';
import { IdentityAgent } from '@mizzen/proxy/xds/identity-agent';

const clockSkewMs = 60_000;

/** The broker's own identity in the mesh, kept fresh, and how it knows those of others. */
export interface BrokerIdentity {
  tls(): tls.TlsOptions;
  /** undefined: the certificate proves no identity of the mesh. */
  identityOf(socket: tls.TLSSocket): string | undefined;
  expiryOf(socket: tls.TLSSocket): number | undefined;
  /** The broker's own identity, which the mesh's operator uses on its machine. */
  isOperator(identity: string): boolean;
  onRenewed(renewed: () => void): void;
  close(): void;
}

/** `file`: who it is and where its control plane is, in the form of a proxy's configuration. Resolves when there is a certificate. */
export async function brokerIdentity(file: string, logger: Logger): Promise<BrokerIdentity> {
  const config = checkProxyConfig(JSON.parse(readFileSync(file, 'utf8')), file);
  const secrets = new SecretStore(logger);
  const agent = new IdentityAgent(config, secrets, new ProxyCounters(), logger);
  await agent.start();
  return {
    tls: () => {
      const { cert, key } = secrets.keyPair(workloadSecretName)!;
      return { cert, key, ca: readFileSync(config.rootCertificateFile), ...tlsDefaults };
    },
    identityOf: (socket) => {
      const identity = peerIdentityOf(socket);
      return 'uri' in identity ? identity.uri : undefined;
    },
    expiryOf: (socket) => {
      const validTo = Date.parse(socket.getPeerX509Certificate()?.validTo ?? '');
      return Number.isNaN(validTo) ? undefined : validTo + clockSkewMs;
    },
    isOperator: (identity) => identity === `spiffe://${config.trustDomain}/ns/${config.namespace}/sa/${config.serviceAccount}`,
    onRenewed: (renewed) => void secrets.onChange(renewed),
    close: () => {
      agent.close();
      secrets.close();
    },
  };
}
