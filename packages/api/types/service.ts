import type { ConnectionPoolSpec } from './destination-rule.ts';
import type { DestinationSpec } from './virtual-service.ts';

/** Core Service, and the two Istio kinds that stand beside it in the registry. */
export interface ServiceSpec {
  readonly type?: string;
  readonly selector?: Readonly<Record<string, string>>;
  readonly ports?: readonly ServicePortSpec[];
  readonly clusterIP?: string;
  readonly clusterIPs?: readonly string[];
  readonly externalName?: string;
  readonly trafficDistribution?: string;
}

export interface ServicePortSpec {
  readonly name?: string;
  readonly port: number;
  readonly targetPort?: number | string;
  readonly protocol?: string;
  readonly appProtocol?: string;
}

/** Meaning and defaults: istio/api service_entry.proto. */
export interface ServiceEntrySpec {
  readonly hosts?: readonly string[];
  readonly addresses?: readonly string[];
  readonly ports?: readonly { readonly number: number; readonly name: string; readonly protocol?: string; readonly targetPort?: number }[];
  readonly location?: 'MESH_EXTERNAL' | 'MESH_INTERNAL';
  readonly resolution?: 'NONE' | 'STATIC' | 'DNS' | 'DNS_ROUND_ROBIN' | 'DYNAMIC_DNS';
  readonly endpoints?: readonly WorkloadEntrySpec[];
  readonly workloadSelector?: { readonly labels?: Readonly<Record<string, string>> };
  readonly exportTo?: readonly string[];
  readonly subjectAltNames?: readonly string[];
}

/** Meaning and defaults: istio/api workload_entry.proto. */
export interface WorkloadEntrySpec {
  readonly address?: string;
  /** Service port name (or number as text) to the port at this endpoint. */
  readonly ports?: Readonly<Record<string, number>>;
  readonly labels?: Readonly<Record<string, string>>;
  readonly network?: string;
  readonly locality?: string;
  readonly weight?: number;
  readonly serviceAccount?: string;
}

/** Meaning and defaults: istio/api workload_group.proto. */
export interface WorkloadGroupSpec {
  /** Of the entries that are made by it. */
  readonly metadata?: { readonly labels?: Readonly<Record<string, string>>; readonly annotations?: Readonly<Record<string, string>> };
  readonly template?: WorkloadEntrySpec;
}

/** Meaning and defaults: istio/api peer_authentication.proto. */
export interface PeerAuthenticationSpec {
  readonly selector?: { readonly matchLabels?: Readonly<Record<string, string>> };
  readonly mtls?: { readonly mode?: MutualTlsMode };
  readonly portLevelMtls?: Readonly<Record<string, { readonly mode?: MutualTlsMode }>>;
}

export type MutualTlsMode = 'UNSET' | 'DISABLE' | 'PERMISSIVE' | 'STRICT';

/** Meaning and defaults: istio/api sidecar.proto. */
export interface SidecarSpec {
  readonly workloadSelector?: { readonly labels?: Readonly<Record<string, string>> };
  readonly egress?: readonly EgressListenerSpec[];
  readonly ingress?: readonly IngressListenerSpec[];
  readonly inboundConnectionPool?: ConnectionPoolSpec;
  readonly outboundTrafficPolicy?: { readonly mode?: 'ALLOW_ANY' | 'REGISTRY_ONLY'; readonly egressProxy?: DestinationSpec };
}

interface SidecarPortSpec {
  readonly number?: number;
  readonly protocol?: string;
  readonly name?: string;
}

export interface EgressListenerSpec {
  readonly port?: SidecarPortSpec;
  /** With a port: a listener of its own at this address. */
  readonly bind?: string;
  readonly captureMode?: 'DEFAULT' | 'IPTABLES' | 'NONE';
  /** `NAMESPACE/HOST`; `./*` is all of the Sidecar's own namespace. */
  readonly hosts?: readonly string[];
}

export interface IngressListenerSpec {
  readonly port?: SidecarPortSpec;
  readonly bind?: string;
  readonly captureMode?: 'DEFAULT' | 'IPTABLES' | 'NONE';
  /** `127.0.0.1:8080`: where the application listens. */
  readonly defaultEndpoint?: string;
  readonly tls?: unknown;
  readonly connectionPool?: ConnectionPoolSpec;
}
