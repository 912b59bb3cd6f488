import { coarseNow, MizzenError } from '@mizzen/common';
import { durationToMs } from '@mizzen/envoy-api';
import {
  Cluster_CommonLbConfigSchema,
  Cluster_LbPolicy,
  Cluster_LeastRequestLbConfigSchema,
  Cluster_RingHashLbConfig_HashFunction,
  type Cluster_SlowStartConfig,
  type Cluster as ClusterMessage,
} from '@mizzen/envoy-api/gen/envoy/config/cluster/v3/cluster_pb.js';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import type { MakeHashTable } from './balancing/hash-table.ts';
import type { BalancingSettings } from './balancing/host-set.ts';
import { defaultMaglevSize, MaglevTable } from './balancing/maglev.ts';
import { leastRequest, type MakePicker, randomChoice, roundRobin, staticWeight, type WeightOf, warmingWeight } from './balancing/pickers.ts';
import { defaultRing, HashRing } from './balancing/ring-hash.ts';

const supportedOfCommon = supportedFields(Cluster_CommonLbConfigSchema, [
  'healthyPanicThreshold',
  'zoneAwareLbConfig',
  'localityWeightedLbConfig',
  'updateMergeWindow',
]);

/** How a cluster chooses among its endpoints (cluster.proto `lb_policy` and the settings beside it). */
export function compileBalancing(message: ClusterMessage, random: () => number, place: string): BalancingSettings {
  const common = message.commonLbConfig;
  refuseUnsupported(Cluster_CommonLbConfigSchema, common, supportedOfCommon, `${place}, common_lb_config`);
  const locality = common?.localityConfigSpecifier;
  return {
    makePicker: compilePicker(message, random, place),
    makeHashTable: compileHashTable(message, place),
    panicThreshold: common?.healthyPanicThreshold?.value ?? 50,
    weighsLocalities: locality?.case === 'localityWeightedLbConfig',
    // Without a local cluster, zones are not preferred, as in Envoy: what is left of the setting is this.
    failsOnPanic: locality?.case === 'zoneAwareLbConfig' && locality.value.failTrafficOnPanic,
  };
}

function compilePicker(message: ClusterMessage, random: () => number, place: string): MakePicker {
  const { lbConfig } = message;
  switch (message.lbPolicy) {
    case Cluster_LbPolicy.ROUND_ROBIN:
      return roundRobin(weightOf(lbConfig.case === 'roundRobinLbConfig' ? lbConfig.value.slowStartConfig : undefined), random);
    case Cluster_LbPolicy.LEAST_REQUEST: {
      const own = lbConfig.case === 'leastRequestLbConfig' ? lbConfig.value : undefined;
      refuseUnsupported(Cluster_LeastRequestLbConfigSchema, own, new Set(['choiceCount', 'slowStartConfig']), `${place}, least_request_lb_config`);
      return leastRequest(Math.max(2, own?.choiceCount ?? 2), weightOf(own?.slowStartConfig), random);
    }
    case Cluster_LbPolicy.RANDOM:
      return randomChoice(random);
    case Cluster_LbPolicy.CLUSTER_PROVIDED:
    case Cluster_LbPolicy.RING_HASH:
    case Cluster_LbPolicy.MAGLEV:
      return roundRobin(staticWeight, random);
    default:
      throw new MizzenError('unsupported-cluster', `${place}: the load balancing policy ${message.lbPolicy} is not supported`);
  }
}

function weightOf(config: Cluster_SlowStartConfig | undefined): WeightOf {
  const windowMs = durationToMs(config?.slowStartWindow) ?? 0;
  if (windowMs === 0) return staticWeight;
  return warmingWeight(
    { windowMs, aggression: Math.max(0.01, config!.aggression?.defaultValue ?? 1), minimumShare: (config!.minWeightPercent?.value ?? 10) / 100 },
    coarseNow,
  );
}

/** envoy cluster.proto: both tables are bounded. */
const maxTableSize = 8 * 1024 * 1024;
const maxMaglevSize = 5_000_011;

function compileHashTable(message: ClusterMessage, place: string): MakeHashTable | undefined {
  const { lbConfig } = message;
  if (message.lbPolicy === Cluster_LbPolicy.RING_HASH) {
    const own = lbConfig.case === 'ringHashLbConfig' ? lbConfig.value : undefined;
    if (own?.hashFunction === Cluster_RingHashLbConfig_HashFunction.MURMUR_HASH_2)
      throw new MizzenError('unsupported-cluster', `${place}: rings are hashed with XX_HASH only`);
    const minimumSize = Number(own?.minimumRingSize ?? BigInt(defaultRing.minimumSize));
    const maximumSize = Number(own?.maximumRingSize ?? BigInt(defaultRing.maximumSize));
    if (minimumSize > maxTableSize || minimumSize > maximumSize)
      throw new MizzenError('invalid-cluster', `${place}: the minimum_ring_size ${minimumSize} is above the maximum`);
    return (shares, previous) => new HashRing(shares, { minimumSize, maximumSize }, previous);
  }
  if (message.lbPolicy === Cluster_LbPolicy.MAGLEV) {
    const size = Number((lbConfig.case === 'maglevLbConfig' ? lbConfig.value.tableSize : undefined) ?? BigInt(defaultMaglevSize));
    if (size < 2 || size > maxMaglevSize || !isPrime(size))
      throw new MizzenError('invalid-cluster', `${place}: the size of a Maglev table must be a prime up to ${maxMaglevSize}, not ${size}`);
    return (shares) => new MaglevTable(shares, size);
  }
  return undefined;
}

function isPrime(value: number): boolean {
  for (let i = 2; i * i <= value; i++) if (value % i === 0) return false;
  return value > 1;
}
