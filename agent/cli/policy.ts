/**
 * `agent policy`: who may do what in a network. Files are read here as protocols/membership/policy-text.ts has them, so that `check` needs
 * no agent, and `set` can show what changes; that code is loaded only by the commands that need it.
 */
import type { Command } from 'commander'
import type { Client } from '../api/client.ts'
import type { Explanation, GrantView, PolicyView, SetPolicyRequest } from '../api/membership-contract.ts'
import { AgentError, reasonOf } from '../error.ts'
import { printable } from '../printable.ts'
import { agreed } from './agreement.ts'
import { type CommandLine, IN_NETWORK } from './command-line.ts'
import { minuteText } from './lifetime.ts'
import { count } from './measures.ts'
import { signerText } from './member.ts'
import type { Terminal } from './terminal.ts'
import { readText } from './text-input.ts'

type InNetwork = { network?: string }

/** As protocols/membership/policy-text.ts, in bytes. */
const POLICY_BYTES_MAX = 768 * 1024
/** As commands end that were refused. */
const EXIT_DENIED = 4
const EXIT_USAGE = 2

export function addPolicy(line: CommandLine): void {
  const parent = line.command({
    usage: 'policy',
    summary: 'who may do what in a network, and why',
    details:
      'One document of grants: from whom, to whom, which verbs. What no grant gives is denied. It is signed, and every member has it.',
    examples: [
      ['policy show > policy.toml', 'as it is; edit it'],
      ['policy set policy.toml', 'shows what changes, and asks'],
      ['policy explain web1 db1 content:fetch', 'whether, and by which grant'],
    ],
  })
  addShowPolicy(line, parent)
  addSet(line, parent)
  addCheck(line, parent)
  addExplain(line, parent)
}

function addShowPolicy(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'show',
      summary: 'the policy, in the form that `policy set` takes',
      examples: [
        ['policy show', 'of the only network'],
        ['policy show --network home > policy.toml', 'of one of several, to a file'],
      ],
    })
    .option(...IN_NETWORK)
  line.asks<[], InNetwork>(command, async ({ client, terminal, isJson }, { network }) => {
    const policy = await client.get<PolicyView>('policy', { network })
    if (isJson) return terminal.json(policy)
    terminal.print(...policy.text.trimEnd().split('\n').map(printable))
    if (terminal.isInteractive)
      terminal.note('', `Version ${policy.version} in ${printable(policy.network)}, ${signedText(policy)}.`)
  })
}

function addSet(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'set <file>',
      summary: 'put a new policy in force',
      details: 'Shows which grants come and go, and asks, on a terminal. - is standard input.',
      examples: [
        ['policy set policy.toml', 'from a file, TOML or JSON'],
        ['policy show | sed s/web1/web2/ | agent policy set -', 'from standard input'],
      ],
    })
    .option(...IN_NETWORK)
    .option('-y, --yes', 'do not ask')
  type Options = InNetwork & { yes?: boolean }
  line.asks<[string], Options>(command, async (session, { network, yes = false }, file) => {
    const { client, terminal, isJson } = session
    const text = await readText(file, terminal, POLICY_BYTES_MAX)
    const { grants, mistakes } = await grantsIn(text)
    if (mistakes.length > 0) throw mistaken(file, mistakes)
    const before = await currentPolicy(client, network)
    const change = changeBetween(before === undefined ? [] : (await grantsIn(before.text)).grants, grants)
    if (before !== undefined && change.added.length + change.removed.length === 0) {
      if (isJson) return terminal.json({ ...before, ...change })
      return terminal.print(
        `Nothing changes: version ${before.version} in ${printable(before.network)} has these grants.`,
      )
    }
    if (!isJson) terminal.print(...changeText(change, terminal))
    await agreed(session, yes, 'Put this in force?')
    const request: SetPolicyRequest = {
      text,
      ...(network !== undefined && { network }),
      ...(before !== undefined && { replaces: before.version }),
    }
    const policy = await client.put<PolicyView>('policy', request)
    if (isJson) return terminal.json({ ...policy, ...change })
    terminal.print(
      `Version ${policy.version} is in force in ${printable(policy.network)}: ${count(grants.length, 'grant')}.`,
    )
  })
}

function addCheck(line: CommandLine, parent: Command): void {
  const command = line.command({
    parent,
    usage: 'check <file>',
    summary: 'what is wrong with a policy, before it is set',
    details: 'Says line and field of each mistake, and needs no running agent. - is standard input.',
    examples: [['policy check policy.toml', 'ends with 0 when it is right, 2 when not']],
  })
  line.asks<[string]>(command, async ({ terminal, isJson }, _options, file) => {
    const { grants, mistakes } = await grantsIn(await readText(file, terminal, POLICY_BYTES_MAX))
    if (isJson) {
      if (mistakes.length > 0) line.endWith(EXIT_USAGE)
      return terminal.json({ grants, mistakes })
    }
    if (mistakes.length > 0) throw mistaken(file, mistakes)
    terminal.print(`${printable(file)}: ${count(grants.length, 'grant')}, no mistakes.`)
    if (grants.length === 0) terminal.print('Without a grant nobody may do anything.')
  })
}

function addExplain(line: CommandLine, parent: Command): void {
  const command = line
    .command({
      parent,
      usage: 'explain <from> <to> <verb...>',
      summary: 'whether a member may do something at another, and why',
      details:
        'Answers with the grant, or with what is missing; ends with 0 when it is allowed, 4 when not. Verbs: content:fetch, content:publish, content:sign, relay:use, api:read, api:admin, service:connect NAME, service:offer NAME, image:pull REPOSITORY, image:push REPOSITORY, image:private REPOSITORY (or PREFIX/*).',
      examples: [
        ['policy explain web1 db1 content:fetch', 'members by name or peer id'],
        ['policy explain web1 db1 service:connect pg', 'a service by its name'],
      ],
    })
    .option(...IN_NETWORK)
  line.asks<[string, string, string[]], InNetwork>(command, async (session, { network }, from, to, words) => {
    const { client, terminal, isJson } = session
    const verb = words.join(' ')
    const said = await client.post<Explanation>('policy/explain', { from, to, verb, network })
    if (!said.allowed) line.endWith(EXIT_DENIED)
    if (isJson) return terminal.json(said)
    const asked = printable(`${from} -> ${to}: ${verb} in ${said.network}`)
    if (said.allowed) {
      const { index, text } = said.rule ?? { index: 0, text: '-' }
      terminal.print(`${terminal.style('green', 'Allowed')}  ${asked}`, `  by grant ${index + 1}: ${printable(text)}`)
    } else {
      terminal.print(
        `${terminal.style('red', 'Denied')}  ${asked}`,
        `  ${printable(said.missing ?? 'no grant gives it')}`,
      )
    }
  })
}

/** The grants of a text, or each mistake in it with its place. */
async function grantsIn(text: string): Promise<{ grants: GrantView[]; mistakes: string[] }> {
  const [{ parsePolicy }, { WireError }] = await Promise.all([
    import('../../protocols/membership/policy-text.ts'),
    import('../../protocols/error.ts'),
  ])
  try {
    return { grants: parsePolicy(text), mistakes: [] }
  } catch (error) {
    if (!(error instanceof WireError)) throw error
    return { grants: [], mistakes: reasonOf(error).split('\n') }
  }
}

function mistaken(file: string, mistakes: readonly string[]): AgentError {
  const where = file === '-' ? 'standard input' : file
  return new AgentError('usage', mistakes.map((one) => `${where}: ${one}`).join('\n'), {
    next: 'Nothing was changed. `agent policy show` prints a policy that is right.',
  })
}

/** undefined while there is none. */
async function currentPolicy(client: Client, network: string | undefined): Promise<PolicyView | undefined> {
  try {
    return await client.get<PolicyView>('policy', { network })
  } catch (error) {
    if (error instanceof AgentError && error.code === 'not-found') return undefined
    throw error
  }
}

type Change = { added: string[]; removed: string[] }

/** By what they say: the order of grants means nothing. */
function changeBetween(before: readonly GrantView[], after: readonly GrantView[]): Change {
  const [old, now] = [before.map(grantText), after.map(grantText)]
  return { added: now.filter((one) => !old.includes(one)), removed: old.filter((one) => !now.includes(one)) }
}

function grantText({ from, to, allow }: GrantView): string {
  return `${from} -> ${to}: ${allow.join(', ')}`
}

function changeText({ added, removed }: Change, terminal: Pick<Terminal, 'style'>): string[] {
  if (added.length + removed.length === 0) return ['No grants: nobody may do anything.']
  return [
    ...removed.map((one) => terminal.style('red', `- ${printable(one)}`)),
    ...added.map((one) => terminal.style('green', `+ ${printable(one)}`)),
  ]
}

function signedText({ issuer, issued }: PolicyView): string {
  return `signed by ${issuer.root ? 'the root key' : signerText(issuer)} on ${minuteText(issued)}`
}
