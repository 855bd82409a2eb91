/**
 * `npm run demo`: the main job on one machine, in under a minute. Three agents start, find each other, one publishes an environment,
 * another finds and installs it, and each step says what it took. With Nix the environment is a closure of real store paths, and a
 * real `nix-store --realise` installs it into a store of its own; without, a folder is shared.
 *
 * Everything is made in temporary directories and on loopback ports of its own, and removed at the end.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { styleText } from 'node:util'
import type { NixConfView, PublishResult, SearchResult } from '../../agent/api/contract.ts'
import { RealAgent, until } from '../agents.ts'
import { hasNix, NixClosure, SecondStore } from '../nix-paths.ts'

const CLOSURE_PATHS = 50
const BYTES_EACH = 200_000
/** Tells this run's environment from those of agents on the same network. */
const WORD = `demo${process.pid}`

const started = performance.now()
await using stack = new AsyncDisposableStack()
process.once('SIGINT', () => void stack.disposeAsync().finally(() => process.exit(130)))

const [alice, bob, carol] = await step('Start three agents: alice, bob and carol', async () => {
  const first = stack.use(await RealAgent.start({ name: 'alice' }))
  const bootstrap = [await first.address()]
  const others = ['bob', 'carol'].map((name) => RealAgent.start({ name, bootstrap }))
  const [second, third] = (await Promise.all(others)) as [RealAgent, RealAgent]
  stack.use(second)
  stack.use(third)
  return [first, second, third] as const
})
const agents = [alice, bob, carol]

await step('They find each other', () =>
  until(
    async () => (await Promise.all(agents.map((agent) => agent.status()))).every(({ peers }) => peers.length === 2),
    {
      what: 'each agent has both others as peers',
      ms: 20_000,
    },
  ),
)

if (hasNix) await shareClosure()
else await shareFolder()

const seconds = ((performance.now() - started) / 1000).toFixed(1)
print(
  `\n${styleText('green', 'Done')} in ${seconds} s. Next: npm start, and \`npm run agent -- status\` in another terminal.`,
)

async function shareClosure(): Promise<void> {
  const closure = stack.use(
    await step(`Build an environment of ${CLOSURE_PATHS} store paths with Nix`, () =>
      NixClosure.make({ paths: CLOSURE_PATHS, bytesEach: BYTES_EACH, name: 'undernet-demo' }),
    ),
  )
  await step('alice publishes it', () =>
    alice.json<PublishResult>('publish', closure.root, '--name', WORD, '--description', 'an environment of the demo'),
  )
  await findIt()
  const { publicKey } = await step('bob trusts the key that alice signs with', async () => {
    const conf = await alice.json<NixConfView>('nix-conf')
    await bob.json('trust', 'add', conf.publicKey)
    return await bob.json<NixConfView>('nix-conf')
  })
  const { http } = await bob.status()
  const store = stack.use(await SecondStore.make())
  const realised = await step("bob's Nix installs it into a store of its own, by `nix-store --realise`", () =>
    store.realise(closure.root, { substituters: [`${http}/nix`], keys: [publicKey] }),
  )
  if (!realised.ok || !store.has(closure.root)) throw new Error(`nix-store --realise failed:\n${realised.stderr}`)
  const problems = await step('Nix checks the contents of every path', () => store.verify())
  if (problems.includes('was modified')) throw new Error(problems)
  print(`  ${closure.root} came from alice to ${store.directory}`)
}

async function shareFolder(): Promise<void> {
  print('  Nix is not installed here, so the demo shares a folder instead of store paths.')
  const folder = mkdtempSync(join(tmpdir(), 'undernet-demo-'))
  stack.defer(() => rmSync(folder, { recursive: true, force: true }))
  mkdirSync(join(folder, 'environment', 'bin'), { recursive: true })
  writeFileSync(join(folder, 'environment', 'bin', 'hello'), '#!/bin/sh\necho hello\n', { mode: 0o755 })
  writeFileSync(join(folder, 'environment', 'data'), Buffer.alloc(CLOSURE_PATHS * BYTES_EACH, WORD))
  await step('alice publishes it', () => alice.json('publish', join(folder, 'environment'), '--name', WORD))
  await findIt()
  await step('bob gets it', () => bob.json('get', WORD, '--to', join(folder, 'got')))
  const hello = readFileSync(join(folder, 'got', WORD, 'bin', 'hello'), 'utf8')
  if (!hello.includes('echo hello')) throw new Error('what bob got is not what alice published')
}

async function findIt(): Promise<void> {
  await step(`bob searches for "${WORD}", and finds it`, () =>
    until(async () => (await bob.json<SearchResult>('search', WORD)).artifacts[0], {
      what: 'bob finds the environment',
    }),
  )
}

/** Says what is done, does it, and says what it took. */
async function step<T>(what: string, work: () => Promise<T>): Promise<T> {
  const begin = performance.now()
  const result = await work()
  const ms = Math.round(performance.now() - begin)
  print(`${styleText('green', '✓')} ${what} ${styleText('dim', `(${ms} ms)`)}`)
  return result
}

function print(line: string): void {
  process.stdout.write(`${line}\n`)
}
