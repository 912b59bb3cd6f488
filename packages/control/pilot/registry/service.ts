import type { Origin } from '@mizzen/common';

/** A service of the mesh, whatever kind of resource defined it (Service or ServiceEntry). Immutable; part of a snapshot. */
export interface Service {
  /** The full host name, `reviews.default.svc.cluster.local` or a ServiceEntry's host; may be a wildcard. */
  readonly hostname: string;
  /** The name in its namespace; for a ServiceEntry the object's name. */
  readonly name: string;
  readonly namespace: string;
  readonly kind: 'Service' | 'ServiceEntry';
  readonly ports: readonly ServicePort[];
  /** Addresses of its own (clusterIP, ServiceEntry.addresses; the latter may be ranges); none: the mesh gives it one (./auto-addresses.ts). */
  readonly addresses: readonly string[];
  /** It is known by the addresses of its instances (clusterIP None). */
  readonly isHeadless: boolean;
  /** `dns`: all addresses of a name; `dnsOne`: whichever a new connection is given; `byName`: of the host that a request names; `none`: where the client was going. */
  readonly resolution: 'static' | 'dns' | 'dnsOne' | 'byName' | 'none';
  /** Names in the certificates of its servers, where they differ from its host. */
  readonly subjectAltNames?: readonly string[] | undefined;
  readonly isExternal: boolean;
  /** Namespaces that see it; undefined: all. */
  readonly exportTo: readonly string[] | undefined;
  readonly instances: readonly Instance[];
  /** Kubernetes' `trafficDistribution`: how near endpoints shall be. */
  readonly trafficDistribution: string | undefined;
  readonly origin: Origin;
}

export interface ServicePort {
  readonly name: string;
  readonly number: number;
  readonly targetPort: number | string;
  readonly protocol: Protocol;
}

/** `AUTO`: nothing was declared; what is spoken is found out connection by connection. */
export type Protocol = 'HTTP' | 'HTTPS' | 'HTTP2' | 'GRPC' | 'TLS' | 'TCP' | 'UDP' | 'AUTO';

/** One replica of a service, with the address that callers connect to. */
export interface Instance {
  readonly workload: string;
  readonly namespace: string;
  readonly address: string;
  /** Service port number to the port at `address`. */
  readonly ports: ReadonlyMap<number, number>;
  readonly labels: Readonly<Record<string, string>>;
  readonly serviceAccount: string;
  readonly isHealthy: boolean;
  /** A sidecar that takes mutual TLS stands before it. */
  readonly hasSidecar: boolean;
  readonly locality: string;
  readonly weight: number;
}

/** The protocol that a port declares: by `appProtocol`, else by the part of its name before the first dash (Istio's convention). */
export function protocolOf(name: string | undefined, appProtocol: string | undefined, protocol: string | undefined): Protocol {
  if (protocol?.toUpperCase() === 'UDP') return 'UDP';
  for (const text of [appProtocol, name?.split('-')[0]]) {
    switch (text?.toLowerCase()) {
      case 'http':
      case 'http1':
        return 'HTTP';
      case 'http2':
      case 'kubernetes.io/h2c':
        return 'HTTP2';
      case 'grpc':
      case 'grpc-web':
        return 'GRPC';
      case 'https':
        return 'HTTPS';
      case 'tls':
        return 'TLS';
      case 'tcp':
      case 'mongo':
      case 'mysql':
      case 'redis':
        return 'TCP';
    }
  }
  return 'AUTO';
}

/** HTTP/1.1 is spoken on these; others travel as bytes. */
export function isHttp(protocol: Protocol): boolean {
  return protocol === 'HTTP' || protocol === 'HTTP2' || protocol === 'GRPC';
}

/** An HTTP client may call this port: it declares HTTP, or nothing. */
export function mayBeHttp(protocol: Protocol): boolean {
  return isHttp(protocol) || protocol === 'AUTO';
}

export function selects(selector: Readonly<Record<string, string>> | undefined, labels: Readonly<Record<string, string>> | undefined): boolean {
  return Object.entries(selector ?? {}).every(([name, value]) => labels?.[name] === value);
}
