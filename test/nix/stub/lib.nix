# As much of nixpkgs' lib as flake.nix and nix/ use, with the same meaning, so that tests of them need no network. What is refused by the
# real one is refused here: a definition of a wrong type, one of an option that there is not, two that contradict each other.
let
  inherit (builtins)
    all
    attrNames
    concatLists
    concatStringsSep
    elem
    filter
    foldl'
    head
    isAttrs
    isFunction
    isList
    listToAttrs
    mapAttrs
    ;

  fail = path: what: throw "The option `${concatStringsSep "." path}' ${what}";
  isOption = value: value._type or "" == "option";

  # What a definition comes down to: none, or some values.
  discharge =
    value:
    if value._type or "" == "if" then
      (if value.condition then discharge value.content else [ ])
    else if value._type or "" == "merge" then
      concatLists (map discharge value.contents)
    else
      [ value ];

  # Definitions are looked through by name without asking whether their condition holds, as conditions may ask for other options.
  pushDown =
    name: value:
    if value._type or "" == "if" then
      map (content: {
        _type = "if";
        inherit (value) condition;
        inherit content;
      }) (pushDown name value.content)
    else if value._type or "" == "merge" then
      concatLists (map (pushDown name) value.contents)
    else if value ? ${name} then
      [ value.${name} ]
    else
      [ ];
  namesIn =
    value:
    if value._type or "" == "if" then
      namesIn value.content
    else if value._type or "" == "merge" then
      concatLists (map namesIn value.contents)
    else
      attrNames value;

  evaluateOption =
    path: option: definitions:
    let
      values = concatLists (map discharge definitions);
      wrong = filter (value: !option.type.check value) values;
    in
    if wrong != [ ] then
      fail path "has a definition that is not of type `${option.type.description}'."
    else if values != [ ] then
      option.type.merge path values
    else if option ? default then
      option.type.merge path [ option.default ]
    else
      fail path "is used but not defined.";

  # Both trees side by side: values where there are options.
  evaluateTree =
    path: options: definitions:
    mapAttrs (
      name: declared:
      let
        here = concatLists (map (pushDown name) definitions);
      in
      if isOption declared then
        evaluateOption (path ++ [ name ]) declared here
      else
        evaluateTree (path ++ [ name ]) declared here
    ) options;

  unknown =
    path: options: definitions:
    concatLists (
      map (
        name:
        if !(options ? ${name}) then
          [ (concatStringsSep "." (path ++ [ name ])) ]
        else if isOption options.${name} then
          [ ]
        else
          unknown (path ++ [ name ]) options.${name} (concatLists (map (pushDown name) definitions))
      ) (concatLists (map namesIn definitions))
    );

  mergeTrees = foldl' (
    a: b: a // mapAttrs (name: value: if a ? ${name} && !isOption value then mergeTrees [ a.${name} value ] else value) b
  ) { };

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    let
      load =
        module:
        let
          loaded = if builtins.isPath module || builtins.isString module then import module else module;
          applied = if isFunction loaded then loaded (specialArgs // { inherit lib config; }) else loaded;
          isLong = applied ? options || applied ? config || applied ? imports;
        in
        concatLists (map load (applied.imports or [ ]))
        ++ [
          {
            options = applied.options or { };
            config =
              if isLong then
                applied.config or (removeAttrs applied [
                  "imports"
                  "options"
                ])
              else
                applied;
          }
        ];
      loaded = concatLists (map load modules);
      options = mergeTrees (map (one: one.options) loaded);
      definitions = map (one: one.config) loaded;
      config = evaluateTree [ ] options definitions;
      none = unknown [ ] options definitions;
    in
    {
      inherit options;
      config = if none == [ ] then config else throw "The option `${head none}' does not exist.";
    };

  only =
    path: values:
    if all (value: value == head values) values then head values else fail path "has conflicting definition values.";
  type = description: check: {
    inherit description check;
    merge = only;
  };
  deepMerge =
    a: b:
    if isAttrs a && isAttrs b && !(a ? outPath) then
      a // mapAttrs (name: value: if a ? ${name} then deepMerge a.${name} value else value) b
    else if isList a && isList b then
      a ++ b
    else if builtins.isString a && builtins.isString b && a != b then
      "${a}\n${b}"
    else
      b;

  types = rec {
    bool = type "boolean" builtins.isBool;
    str = type "string" builtins.isString;
    package = type "package" (value: value.type or "" == "derivation" || value ? outPath);
    path = type "absolute path" (
      value: builtins.isPath value || (builtins.isString value && builtins.substring 0 1 value == "/")
    );
    strMatching =
      pattern:
      type "string matching ${pattern}" (value: builtins.isString value && builtins.match pattern value != null);
    enum = values: type "one of ${builtins.toJSON values}" (value: elem value values);
    ints = {
      between =
        low: high:
        type "integer between ${toString low} and ${toString high}" (
          value: builtins.isInt value && value >= low && value <= high
        );
      unsigned = type "unsigned integer" (value: builtins.isInt value && value >= 0);
    };
    either = a: b: {
      description = "${a.description} or ${b.description}";
      check = value: a.check value || b.check value;
      merge = path: values: (if all a.check values then a else b).merge path values;
    };
    nullOr = inner: {
      description = "null or ${inner.description}";
      check = value: value == null || inner.check value;
      merge = path: values: if all (value: value == null) values then null else inner.merge path values;
    };
    listOf = inner: {
      description = "list of ${inner.description}";
      check = isList;
      merge =
        path: values:
        map (
          value:
          if inner.check value then
            inner.merge path [ value ]
          else
            fail path "has a definition that is not of type `list of ${inner.description}'."
        ) (concatLists values);
    };
    submodule = declared: {
      description = "submodule";
      getSubOptions = _: declared.options;
      check = isAttrs;
      merge = _: values: (evalModules { modules = [ declared ] ++ map (config: { inherit config; }) values; }).config;
    };
    # For the options of NixOS itself, whose types are not ours to check.
    anything = {
      description = "anything";
      check = _: true;
      merge = _: values: foldl' deepMerge (settled (head values)) (map settled (builtins.tail values));
    };
  };
  # Conditions may be anywhere within what has no options of its own.
  settled =
    value:
    if isAttrs value && !(value ? outPath) then
      listToAttrs (
        concatLists (
          map (
            name:
            map (one: {
              inherit name;
              value = settled one;
            }) (discharge value.${name})
          ) (attrNames value)
        )
      )
    else
      value;

  lib = {
    inherit evalModules types filter;
    mkOption = attrs: attrs // { _type = "option"; };
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    literalExpression = text: { inherit text; };
    filterAttrs =
      keep: set: removeAttrs set (filter (name: !(keep name set.${name})) (attrNames set));
    inherit mapAttrs;
    genAttrs =
      names: make:
      listToAttrs (
        map (name: {
          inherit name;
          value = make name;
        }) names
      );
    optional = condition: value: if condition then [ value ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    concatMapStrings = make: list: concatStringsSep "" (map make list);
    concatMapStringsSep =
      separator: make: list:
      concatStringsSep separator (map make list);
    unique = foldl' (found: one: if elem one found then found else found ++ [ one ]) [ ];
    splitString = separator: text: filter builtins.isString (builtins.split separator text);
    toInt = builtins.fromJSON;
    hasSuffix =
      suffix: text:
      let
        from = builtins.stringLength text - builtins.stringLength suffix;
      in
      from >= 0 && builtins.substring from (-1) text == suffix;
    removePrefix =
      prefix: text:
      let
        length = builtins.stringLength prefix;
      in
      if builtins.substring 0 length text == prefix then builtins.substring length (-1) text else text;
    licenses.asl20 = "Apache-2.0";
    fetchers.proxyImpureEnvVars = [ ];
  };
in
lib
