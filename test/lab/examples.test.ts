/**
 * Every example of every command's help, typed word for word on machines in boxes: apple, which made the network home, gate, web1, db1 and
 * builder, which are members, lone, which is none, and fresh, where no agent runs. Where an example is not typed on gate, or needs something to be there before, WAYS
 * says so; the others are typed as they are, in the order of the commands.
 */
import { copyFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { CommandLine } from '../../agent/cli/command-line.ts'
import { commands } from '../../agent/cli/commands.ts'
import { run } from '../agent/cli/capture.ts'
import { Bundle, type Outcome, until } from '../agents.ts'
import { writeImage } from '../images.ts'
import { hasNamespaces } from '../lan.ts'
import { hasNix, NixClosure } from '../nix-paths.ts'
import { type Box, Boxes } from './boxes.ts'

const WITH_AGENT = ['apple', 'gate', 'web1', 'db1', 'builder']
const MACHINES = [...WITH_AGENT, 'lone', 'fresh']
/** As the command line says that something is not there: it may be on its way. */
const EXIT_NOT_FOUND = 5
const ARRIVES_MS_MAX = 30_000
const PASSPHRASE = 'correct horse battery staple'
/** What an example calls the machine at 192.0.2.7 is apple. */
const EXAMPLE_ADDRESSES: Record<string, string> = { apple: '192.0.2.7', gate: '192.0.2.8', lone: '192.0.2.9' }

const POLICY = `
[[grants]]
from = "*"
to = "*"
allow = ["service:offer *", "service:connect *"]
`

type Way = {
  /** gate, if it is not said. */
  on?: string
  /** Typed there before. */
  first?: readonly string[]
  /** What is asked for, on a terminal. */
  answers?: readonly string[]
  /** It goes on until Ctrl-C, and has said this. */
  goesOn?: RegExp
  /** Instead of what is in the example, where that differs from day to day. */
  meant?: readonly (readonly [string, () => string])[]
  /** Not 0. */
  ends?: readonly number[]
}

let token = ''
let keyOfApple = ''
let invitation = ''
let secondWeb = ''
const KEY = [['apple-1:c2VjcmV0...=', () => keyOfApple]] as const

const WAYS: Readonly<Record<string, Way>> = {
  start: { on: 'lone', goesOn: /agent\.started/ },
  'start --bootstrap /ip4/192.0.2.7/tcp/7477': { on: 'lone', goesOn: /agent\.started/ },
  'start --state /tmp/b --listen /ip4/127.0.0.1/tcp/0 --http off --proxy off --dns off': {
    on: 'lone',
    goesOn: /agent\.started/,
  },
  'install --dry-run': { on: 'lone' },
  install: { on: 'lone' },
  'install --nix --containers --dns': { on: 'lone' },
  'install --root /mnt': { on: 'lone' },
  'uninstall --dry-run': { on: 'lone' },
  uninstall: { on: 'lone' },
  'uninstall --nix': { on: 'lone', first: ['agent install --nix'] },
  'uninstall --purge': { on: 'lone' },

  'network create home': { on: 'apple' },
  'network create home --as gate': { on: 'web1' },
  'network leave home': { on: 'web1' },
  'network leave test --force': { on: 'lone', first: ['agent network create test'] },
  'network export-root home --to home-root.age': { on: 'apple', answers: [PASSPHRASE, PASSPHRASE] },
  'network export-root home --to - --passphrase-file pass | ssh vault "cat > home-root.age"': { on: 'apple' },
  'network import-root home home-root.age': { on: 'apple', answers: [PASSPHRASE] },
  'network import-root home - --passphrase-file pass < home-root.age': {
    on: 'apple',
    first: ['agent network remove-root home'],
  },
  'network restore home-root.age --as gate': { on: 'lone', answers: [PASSPHRASE] },
  'network remove-root home': { on: 'apple' },
  'network delegate home gate': { on: 'apple' },
  'network delegate home gate --may issue,revoke,policy --days 365': { on: 'apple' },
  "network delegate home builder --names 'ci-*' --labels role=ci": { on: 'apple' },

  invite: { on: 'apple' },
  'invite --name web1 --label zone=a': { on: 'apple' },
  "invite --name 'ci-*' --uses 20 --expires 7d > tokens": { on: 'apple' },
  'invite --list': { on: 'apple' },
  'invite --withdraw 3f2a': { on: 'apple', meant: [['3f2a', () => invitation]] },
  join: { on: 'db1', answers: [] },
  'join --file token.txt --as web1': { on: 'web1' },
  'join < token.txt': { on: 'builder' },
  'member revoke web1': { on: 'apple' },
  'member revoke web1 --reason "stolen"': { on: 'apple', meant: [['web1', () => secondWeb]] },
  'member revoke gate --issuer': { on: 'apple' },
  'member revoke gate --issuer --issued-after 2026-11-01': { on: 'apple' },
  'member label web1 zone=a role=web': { on: 'apple' },
  'member label web1 --remove role': { on: 'apple' },
  'policy set policy.toml': { on: 'apple', first: ['agent policy show > policy.toml'] },
  'policy show | sed s/web1/web2/ | agent policy set -': { on: 'apple' },
  'audit --follow': { on: 'apple', goesOn: /./ },
  // A service of another node.
  'ping web.home -c 100': { on: 'apple' },
  'forward web 8000': { goesOn: /8000/ },
  'forward db.home --sticky': { goesOn: /127\.0\.0\.1/ },
  'trust add apple-1:c2VjcmV0...=': { meant: KEY },
  'trust remove apple-1': { meant: [['apple-1', () => keyOfApple.split(':')[0] ?? '']] },
  'completion bash > ~/.local/share/bash-completion/completions/agent': {
    first: ['mkdir -p ~/.local/share/bash-completion/completions'],
  },
  'completion zsh > ~/.zfunc/_agent': { first: ['mkdir -p ~/.zfunc'] },
  'completion fish > ~/.config/fish/completions/agent.fish': { first: ['mkdir -p ~/.config/fish/completions'] },
  'dns-conf dnsmasq | sudo tee /etc/dnsmasq.d/undernet.conf': { first: ['mkdir -p /etc/dnsmasq.d'] },
  // In a box something is always to be mended.
  doctor: { ends: [0, 1] },
  'doctor --json | jq -r \'.checks[] | select(.state != "ok") | .id\'': { ends: [0, 1] },
  'backup node.age': { answers: [PASSPHRASE, PASSPHRASE] },
  'backup --passphrase-file pass "/backup/$(hostname)-$(date +%F).age"': {
    first: ['mkdir backup'],
    meant: [['/backup/', () => 'backup/']],
  },
  'restore node.age': { on: 'fresh', answers: [PASSPHRASE] },
  'restore node.age --state /var/lib/undernet --passphrase-file pass': { on: 'fresh' },
  'restore node.age --replace': { on: 'fresh', answers: [PASSPHRASE] },
  'restore --before-upgrade': {
    on: 'fresh',
    first: ['cp /var/lib/undernet/state.db{,.before-upgrade}'],
  },
}

const ASKING = [
  ['status', 'peers', 'ping', 'search', 'show', 'pin', 'unpin', 'pins', 'content', 'gc', 'unpublish', 'service'],
  ['connections', 'trace', 'image', 'network', 'invite', 'member', 'policy', 'audit', 'trust', 'names'],
  ['dns-conf', 'nix-conf', 'oci-conf', 'config'],
].flat()

/** What makes the network, and what others need to be there. */
const EARLY = ['network create home', 'join', 'join --file token.txt --as web1', 'join < token.txt']
const SOON = [
  'service add web 8080',
  'service add web 8080 --proto http --check http:/health',
  'service add db 192.0.2.5:5432 --weight 3',
]
/** What takes something away that others need. */
const LATE = [
  ['image rm home/team/app:1', 'service drain web', 'service drain web --undo', 'service remove web'],
  ['network remove-root home', 'network import-root home home-root.age'],
  'network import-root home - --passphrase-file pass < home-root.age',
  // One gate after the other.
  'member revoke gate --issuer --issued-after 2026-11-01',
  ['network restore home-root.age --as gate', 'member revoke gate --issuer'],
  ['network leave home', 'network create home --as gate', 'network leave test --force'],
  ['member revoke web1', 'member revoke web1 --reason "stolen"'],
].flat()

const all = new Set([...new CommandLine(commands).examples.values()].flat().map(([typed]) => typed))
const named = [...EARLY, ...SOON, ...LATE]
const ordered = [...EARLY, ...SOON, ...[...all].filter((one) => !named.includes(one)), ...LATE]

describe.skipIf(!hasNamespaces || !hasNix)('examples of --help', () => {
  const stack = new AsyncDisposableStack()
  let boxes: Boxes

  beforeAll(async () => {
    const bundle = stack.use(await Bundle.build())
    const closure = stack.use(await NixClosure.make({ name: 'result' }))
    boxes = stack.use(await Boxes.start(MACHINES))
    await Promise.all(MACHINES.map((name) => furnish(boxes.get(name), bundle, closure)))
  })
  afterAll(() => stack.disposeAsync())

  it('are all there', () => {
    expect(Object.keys(WAYS).filter((one) => !all.has(one))).toEqual([])
    expect(named.filter((one) => !all.has(one))).toEqual([])
  })

  it.each(ordered)('agent %s', async (example) => {
    const way = WAYS[example] ?? {}
    const box = boxes.get(way.on ?? 'gate')
    for (const line of way.first ?? []) await succeeds(box, line)
    const line = (way.meant ?? []).reduce((text, [from, to]) => text.replace(from, to()), `agent ${example}`)
    if (way.goesOn !== undefined) {
      const stop = await box.goOn(line, way.goesOn)
      await stop()
      return
    }
    const answers = example === 'join' ? [token] : way.answers
    await succeeds(box, line, { ...way, ...(answers !== undefined && { answers }), isPlain: isPlain(example) })
    await afterwards(example)
  })

  /** What examples call by names that only come about. */
  async function afterwards(example: string): Promise<void> {
    const apple = boxes.get('apple')
    if (example === 'network create home') {
      await succeeds(apple, 'cat more.toml >> policy.toml && agent policy show | cat - more.toml | agent policy set -')
      token = (await succeeds(apple, 'agent invite --uses 10')).stdout.trim()
      keyOfApple = (await succeeds(apple, 'agent nix-conf --json | jq -r .publicKey')).stdout.trim()
      for (const name of ['web1', 'builder']) boxes.get(name).file('/root/token.txt', token)
      boxes.get('gate').file('/root/token.txt', token)
      await succeeds(boxes.get('gate'), 'agent join --file token.txt')
      await succeeds(apple, 'agent publish hello && agent publish toolchain && agent publish nix')
      const gate = boxes.get('gate')
      await succeeds(gate, 'agent publish hello')
      for (const tag of ['1', 'latest'])
        await succeeds(
          gate,
          `skopeo --insecure-policy copy --dest-tls-verify=false oci:image docker://127.0.0.1:7478/home/team/app:${tag}`,
        )
    }
    if (example === 'backup node.age')
      copyFileSync(boxes.get('gate').path('/root/node.age'), boxes.get('fresh').path('/root/node.age'))
    if (example === 'uninstall --purge') await boxes.get('lone').goOn('agent start', /agent\.started/)
    if (example === 'member revoke web1') {
      const builder = boxes.get('builder')
      const { stdout } = await succeeds(builder, 'agent network leave home && agent join --file token.txt --as web1')
      // The name of somebody who was revoked is not given away again.
      secondWeb = /is (\S+) in network home/.exec(stdout)?.[1] ?? ''
    }
    if (example === 'invite')
      invitation = (await succeeds(apple, 'agent invite --list --json | jq -r .invitations[0].id')).stdout.trim()
    if (example.startsWith('network export-root home --to -'))
      copyFileSync(apple.path('/root/home-root.age'), boxes.get('lone').path('/root/home-root.age'))
  }

  async function succeeds(
    box: Box,
    line: string,
    { answers, ends = [0], isPlain: plain = false }: Pick<Way, 'answers' | 'ends'> & { isPlain?: boolean } = {},
  ): Promise<Outcome> {
    let outcome: Outcome | undefined
    await until(
      async () => {
        if (answers !== undefined) outcome = await box.answer(line, answers)
        else outcome = await (plain ? asks(box, line) : box.type(line))
        return outcome.code !== EXIT_NOT_FOUND
      },
      { what: () => `${line} on ${box.name}: ${outcome?.stderr}${outcome?.stdout}`, ms: ARRIVES_MS_MAX },
    )
    if (outcome === undefined || !ends.includes(outcome.code))
      throw new Error(`${line}\non ${box.name} ended with ${outcome?.code}: ${outcome?.stderr}${outcome?.stdout}`)
    return outcome
  }
})

/** What the people of the examples have at home. */
async function furnish(box: Box, bundle: Bundle, closure: NixClosure): Promise<void> {
  box.useBundle(bundle)
  box.file('/root/.config/undernet/agent.toml', 'open = false\n')
  box.file('/root/more.toml', POLICY)
  box.file('/root/pass', `${PASSPHRASE}\n`)
  for (const name of ['hello', 'toolchain', 'nix', 'dump.sql', 'notes/today'])
    box.file(`/root/${name}`, `${name} of ${box.name}\n`)
  if (box.name === 'gate') writeImage(box.path('/root/image'), { layers: [Buffer.from('a layer')] })
  box.file('/root/site/index.html', `${box.name}\n`)
  box.file('/root/www/health', 'well\n')
  const steps = [`ln -s ${closure.root} result`, 'mount -t tmpfs tmpfs /mnt']
  const address = EXAMPLE_ADDRESSES[box.name]
  if (address !== undefined) steps.push(`ip address add ${address}/24 dev eth0`)
  const { code, stderr } = await box.type(steps.join(' && '))
  expect([code, stderr]).toEqual([0, ''])
  if (box.name === 'gate') await box.goOn('python3 -u -m http.server 8080 --bind 127.0.0.1 --directory www', /Serving/)
  if (WITH_AGENT.includes(box.name)) await box.goOn('agent start', /agent\.started/)
}

/** What only asks the agent is the same for each process that asks: this one does it in a tenth of the time. */
function isPlain(example: string): boolean {
  const [noun = ''] = example.split(' ')
  return ASKING.includes(noun) && !/[|<>~"']|\.(toml|age)\b/.test(example)
}

async function asks(box: Box, line: string): Promise<Outcome> {
  const socket = box.path('/root/.local/state/undernet/agent.sock')
  const { status, out, err } = await run(line.split(' ').slice(1), { socket })
  return { code: status, stdout: out, stderr: err }
}
