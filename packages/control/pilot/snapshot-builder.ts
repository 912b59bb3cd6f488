import type { VirtualServiceSpec } from '@mizzen/api';
import { describeOrigin, type Logger, messageOf } from '@mizzen/common';
import type { ConfigStore } from '../galley/config-store.ts';
import { describeFinding, type Finding } from './analysis/finding.ts';
import { destinationRuleFindings, virtualServiceFindings } from './analysis/references.ts';
import { defaultMeshConfig, type MeshConfig, meshConfigName, readMeshConfig } from './mesh-config.ts';
import { type Configured, type MeshSnapshot, rootNamespace, takeSnapshot } from './snapshot.ts';

/**
 * Turns the store into snapshots, and keeps what would break traffic out of them: a VirtualService that points to nothing does not
 * replace the version of it that worked. The snapshot then still holds the last good one, and the findings say why.
 */
export class SnapshotBuilder {
  readonly #store: ConfigStore;
  readonly #trustDomain: string;
  readonly #logger: Logger;
  /** The newest admitted version of each VirtualService, by namespace/name. */
  readonly #lastGood: Map<string, Configured<VirtualServiceSpec>>;
  #meshConfig: MeshConfig;
  #reported: Set<string>;
  #findings: readonly Finding[];

  constructor(store: ConfigStore, trustDomain: string, logger: Logger) {
    this.#store = store;
    this.#trustDomain = trustDomain;
    this.#logger = logger;
    this.#lastGood = new Map();
    this.#meshConfig = defaultMeshConfig;
    this.#reported = new Set();
    this.#findings = [];
  }

  /** What is wrong in the newest snapshot's configuration. */
  get findings(): readonly Finding[] {
    return this.#findings;
  }

  async build(): Promise<MeshSnapshot> {
    const configProblem = await this.#readMeshConfig();
    const raw = await takeSnapshot(this.#store, this.#trustDomain, this.#meshConfig);
    const findings: Finding[] = [...configProblem, ...destinationRuleFindings(raw)];
    const admitted: Configured<VirtualServiceSpec>[] = [];
    const present = new Set<string>();
    for (const virtualService of raw.virtualServices) {
      const key = `${virtualService.namespace}/${virtualService.name}`;
      present.add(key);
      const own = virtualServiceFindings(virtualService, raw);
      const previous = this.#lastGood.get(key);
      const isBroken = own.some((finding) => finding.level === 'error');
      // A version that once worked stays, whatever has become of what it points to: taking it away would change more.
      if (!isBroken || previous?.revision === virtualService.revision) {
        admitted.push(virtualService);
        this.#lastGood.set(key, virtualService);
      } else if (previous) admitted.push(previous);
      const effect =
        !isBroken || previous?.revision === virtualService.revision ? '' : previous ? ' The version before it stays in effect.' : ' It is not in effect.';
      findings.push(...own.map((finding) => (finding.level === 'error' ? { ...finding, message: finding.message + effect } : finding)));
    }
    for (const key of this.#lastGood.keys()) if (!present.has(key)) this.#lastGood.delete(key);
    this.#findings = findings;
    this.#report(findings);
    return { ...raw, virtualServices: admitted };
  }

  /** What cannot be read does not replace what could. */
  async #readMeshConfig(): Promise<Finding[]> {
    const stored = await this.#store.get({ group: '', kind: 'ConfigMap', namespace: rootNamespace, name: meshConfigName });
    try {
      this.#meshConfig = readMeshConfig(stored);
      return [];
    } catch (error) {
      const place = stored ? describeOrigin(stored.origin) : '';
      const message = `${messageOf(error)}. The settings before it stay in effect.`;
      return [{ code: 'MZ0003', level: 'error', object: `ConfigMap ${rootNamespace}/${meshConfigName}`, path: 'data.mesh', place, message }];
    }
  }

  #report(findings: readonly Finding[]): void {
    const texts = new Set(findings.filter((finding) => finding.level !== 'info').map(describeFinding));
    for (const text of texts) if (!this.#reported.has(text)) this.#logger.warn(text);
    this.#reported = texts;
  }
}
