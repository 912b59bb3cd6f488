import type { FilterReferenceSpec } from './api.ts';

/** mizzen.dev/v1alpha1 Workload; its fields are explained in ../schemas/Workload.json, which `kubectl explain workload` shows. */
export interface WorkloadSpec {
  readonly command?: readonly string[];
  readonly build?: readonly string[];
  readonly requires?: readonly string[];
  readonly fallback?: readonly string[];
  readonly ports?: readonly WorkloadPortSpec[];
  readonly serviceAccount?: string;
  readonly replicas?: number;
  readonly locality?: string;
  readonly workloadGroup?: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly workingDirectory?: string;
  readonly sidecar?: boolean;
  readonly gateway?: boolean;
  readonly messaging?: { readonly appId?: string; readonly port?: string; readonly protocol?: 'http' | 'grpc'; readonly publishOnly?: boolean };
  readonly publicPorts?: readonly number[];
  readonly filters?: readonly FilterReferenceSpec[];
  readonly readinessProbe?: {
    readonly httpGet?: { readonly path: string; readonly port?: number };
    readonly tcpSocket?: { readonly port?: number };
    readonly grpc?: { readonly port?: number; readonly service?: string };
    readonly periodSeconds?: number;
    readonly timeoutSeconds?: number;
    readonly failureThreshold?: number;
  };
}

export interface WorkloadPortSpec {
  readonly name?: string;
  readonly port: number;
  readonly protocol?: string;
}
