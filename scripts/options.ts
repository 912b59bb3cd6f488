import { parseArgs } from 'node:util';

interface Options<Numbers extends string, Lists extends string, Switches extends string> {
  /** `--name 5`, with the value when the option is absent. */
  readonly numbers?: Readonly<Record<Numbers, number>>;
  /** `--name a,b`, with the words that are allowed. Absent: all of them. */
  readonly lists?: Readonly<Record<Lists, readonly string[]>>;
  /** `--name`. */
  readonly switches?: readonly Switches[];
}

type Given<Numbers extends string, Lists extends string, Switches extends string> = Record<Numbers, number> &
  Record<Lists, ReadonlySet<string>> &
  Record<Switches, boolean>;

/** The command line of a bench or a fuzz run. What is not known ends the process with 2: a misspelt `--case` must not run everything. */
export function commandOptions<Numbers extends string = never, Lists extends string = never, Switches extends string = never>(
  options: Options<Numbers, Lists, Switches>,
  args: readonly string[] = process.argv.slice(2),
): Given<Numbers, Lists, Switches> {
  try {
    return parse(options, args);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n`);
    process.exit(2);
  }
}

/** Throws an Error that names the option and what it takes. */
export function parse<Numbers extends string = never, Lists extends string = never, Switches extends string = never>(
  { numbers, lists, switches }: Options<Numbers, Lists, Switches>,
  args: readonly string[],
): Given<Numbers, Lists, Switches> {
  const types: Record<string, { type: 'string' | 'boolean' }> = {};
  for (const name of Object.keys({ ...numbers, ...lists })) types[name] = { type: 'string' };
  for (const name of switches ?? []) types[name] = { type: 'boolean' };
  const values: Readonly<Record<string, unknown>> = parseArgs({ args: [...args], options: types }).values;
  const given: Record<string, number | boolean | ReadonlySet<string>> = {};
  for (const [name, otherwise] of Object.entries<number>(numbers ?? {})) {
    const value = values[name] === undefined ? otherwise : Number(values[name]);
    if (!(Number.isFinite(value) && value >= 0)) throw new Error(`--${name} takes a number, not '${values[name]}'`);
    given[name] = value;
  }
  for (const [name, allowed] of Object.entries<readonly string[]>(lists ?? {})) {
    const words = values[name] === undefined ? allowed : String(values[name]).split(',');
    const unknown = words.find((word) => !allowed.includes(word));
    if (unknown !== undefined) throw new Error(`--${name} ${unknown} is not known; it takes ${allowed.join(', ')}`);
    given[name] = new Set(words);
  }
  for (const name of (switches ?? []) as readonly string[]) given[name] = values[name] === true;
  return given as Given<Numbers, Lists, Switches>;
}
