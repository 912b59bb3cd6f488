import type { RBAC } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import type { ProxyCounters } from '../telemetry/proxy-counters.ts';
import { RuleSet } from './rule-set.ts';
import type { Subject } from './subject.ts';

export interface Verdict {
  readonly isAllowed: boolean;
  /** The policy that decided; undefined: none was met. */
  readonly policy: string | undefined;
}

interface Messages {
  readonly rules?: RBAC | undefined;
  readonly shadowRules?: RBAC | undefined;
  readonly shadowRulesStatPrefix: string;
}

/** What an RBAC filter does with its rules, of requests and connections alike: the one set decides, the shadow set is only counted (a dry run). */
export class Enforcement {
  readonly #rules: RuleSet | undefined;
  readonly #shadow: RuleSet | undefined;
  readonly #counters: ProxyCounters;
  readonly shadowPrefix: string;

  constructor({ rules, shadowRules, shadowRulesStatPrefix }: Messages, place: string, counters: ProxyCounters) {
    this.#rules = rules && new RuleSet(rules, place);
    this.#shadow = shadowRules && new RuleSet(shadowRules, `${place}, shadow rules`);
    this.#counters = counters;
    this.shadowPrefix = shadowRulesStatPrefix;
  }

  decide(subject: Subject): Verdict {
    const verdict = judge(this.#rules, subject);
    if (verdict === undefined) return allowed;
    this.#count(this.#rules!, verdict, 'enforced');
    return verdict;
  }

  /** undefined: there are no shadow rules. */
  rehearse(subject: Subject): Verdict | undefined {
    const verdict = judge(this.#shadow, subject);
    if (verdict !== undefined) this.#count(this.#shadow!, verdict, 'shadow');
    return verdict;
  }

  #count({ action }: RuleSet, { isAllowed }: Verdict, mode: 'enforced' | 'shadow'): void {
    this.#counters.count(`authorization_decisions_total{action="${action}",mode="${mode}",result="${isAllowed ? 'allowed' : 'denied'}"}`);
  }
}

const allowed: Verdict = { isAllowed: true, policy: undefined };

function judge(rules: RuleSet | undefined, subject: Subject): Verdict | undefined {
  if (rules === undefined) return undefined;
  const policy = rules.match(subject);
  return { isAllowed: rules.action === 'LOG' || (rules.action === 'ALLOW') === (policy !== undefined), policy };
}
