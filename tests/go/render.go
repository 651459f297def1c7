// Runs templates through Go's own text/template the way Ollama 0.24 does, and tells what Ollama reads off a template.
// Standard input is a JSON list of {template, messages, tools, think, system}, standard output a list of {text, error,
// vars, thinking, call}: the names the template uses, the tags around thinking, the text before a tool call.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"sort"
	"strings"
	"text/template"
	"text/template/parse"
)

type Property struct {
	AnyOf       []Property   `json:"anyOf,omitempty"`
	Type        PropertyType `json:"type,omitempty"`
	Items       any          `json:"items,omitempty"`
	Description string       `json:"description,omitempty"`
	Enum        []any        `json:"enum,omitempty"`
	Properties  Properties   `json:"properties,omitempty"`
}

// PropertyType is one name or a list of names.
type PropertyType []string

func (t *PropertyType) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = PropertyType{one}
		return nil
	}
	var many []string
	err := json.Unmarshal(data, &many)
	*t = many
	return err
}

func (t PropertyType) MarshalJSON() ([]byte, error) {
	if len(t) == 1 {
		return json.Marshal(t[0])
	}
	return json.Marshal([]string(t))
}

func asJSON(v any) string {
	data, _ := json.Marshal(v)
	return string(data)
}

type Properties map[string]Property

func (p Properties) String() string { return asJSON(map[string]Property(p)) }

type Arguments map[string]any

func (a Arguments) String() string { return asJSON(map[string]any(a)) }

type Parameters struct {
	Type       string     `json:"type"`
	Defs       any        `json:"$defs,omitempty"`
	Items      any        `json:"items,omitempty"`
	Required   []string   `json:"required,omitempty"`
	Properties Properties `json:"properties"`
}

type Function struct {
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Parameters  Parameters `json:"parameters"`
}

type Tool struct {
	Type     string   `json:"type"`
	Items    any      `json:"items,omitempty"`
	Function Function `json:"function"`
}

type Tools []Tool

func (t Tools) String() string { return asJSON([]Tool(t)) }

type CallFunction struct {
	Index     int
	Name      string
	Arguments Arguments
}

type Call struct {
	ID       string
	Function CallFunction
}

type Message struct {
	Role       string
	Content    string
	Thinking   string
	Images     [][]byte
	ToolCalls  []Call
	ToolName   string `json:"tool_name"`
	ToolCallID string `json:"tool_call_id"`
}

// given is a message as a client sends it.
type given struct {
	Message
	Calls []Call `json:"tool_calls"`
}

type job struct {
	Template string
	Messages []given
	Tools    Tools
	Think    *bool
	System   *string
}

type result struct {
	Text     string   `json:"text"`
	Error    string   `json:"error"`
	Vars     []string `json:"vars"`
	Thinking []string `json:"thinking"`
	Call     string   `json:"call"`
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	read := map[string]*template.Template{}
	results := make([]result, len(jobs))
	for i, j := range jobs {
		t, known := read[j.Template]
		if !known {
			var err error
			t, err = template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": asJSON}).Parse(j.Template)
			if err != nil {
				results[i].Error = err.Error()
				continue
			}
			read[j.Template] = t
		}
		var out bytes.Buffer
		if err := t.Execute(&out, data(j)); err != nil {
			results[i].Error = err.Error()
		}
		results[i].Text = out.String()
		if !known {
			results[i].Vars = vars(t)
			open, close := thinkingTags(t)
			results[i].Thinking = []string{open, close}
			results[i].Call = callTag(t.Tree.Root.Nodes)
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(results); err != nil {
		panic(err)
	}
}

func data(j job) map[string]any {
	var messages []*Message
	var system []string
	for i := range j.Messages {
		m := j.Messages[i].Message
		m.ToolCalls = j.Messages[i].Calls
		if m.Role == "system" {
			system = append(system, m.Content)
		}
		if last := len(messages) - 1; last >= 0 && messages[last].Role == m.Role && m.Role != "tool" {
			messages[last].Content += "\n\n" + m.Content
		} else {
			messages = append(messages, &m)
		}
	}
	whole := strings.Join(system, "\n\n")
	if j.System != nil {
		whole = *j.System
	}
	return map[string]any{
		"System": whole, "Messages": messages, "Tools": j.Tools, "Response": "", "ThinkLevel": "",
		"Think": j.Think != nil && *j.Think, "IsThinkSet": j.Think != nil,
	}
}

// visit goes through a tree; enter gets a node and the nodes around it, outermost first.
func visit(node parse.Node, around []parse.Node, enter func(parse.Node, []parse.Node)) {
	enter(node, around)
	inner := append(append([]parse.Node{}, around...), node)
	branch := func(b *parse.BranchNode) {
		visit(b.Pipe, inner, enter)
		visit(b.List, inner, enter)
		if b.ElseList != nil {
			visit(b.ElseList, inner, enter)
		}
	}
	switch n := node.(type) {
	case *parse.ListNode:
		for _, c := range n.Nodes {
			visit(c, inner, enter)
		}
	case *parse.ActionNode:
		visit(n.Pipe, inner, enter)
	case *parse.TemplateNode:
		if n.Pipe != nil {
			visit(n.Pipe, inner, enter)
		}
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			visit(c, inner, enter)
		}
	case *parse.CommandNode:
		for _, a := range n.Args {
			visit(a, inner, enter)
		}
	}
}

func vars(t *template.Template) []string {
	found := map[string]bool{}
	for _, part := range t.Templates() {
		visit(part.Root, nil, func(node parse.Node, _ []parse.Node) {
			var names []string
			switch n := node.(type) {
			case *parse.FieldNode:
				names = n.Ident
			case *parse.VariableNode:
				names = n.Ident
			}
			for _, name := range names {
				found[strings.ToLower(name)] = true
			}
		})
	}
	names := []string{}
	for name := range found {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func thinkingTags(t *template.Template) (open, close string) {
	visit(t.Root, nil, func(node parse.Node, around []parse.Node) {
		field, ok := node.(*parse.FieldNode)
		if !ok || field.Ident[0] != "Thinking" {
			return
		}
		var list *parse.ListNode
		var loop *parse.RangeNode
		for i := len(around) - 1; i >= 0; i-- {
			if l, ok := around[i].(*parse.ListNode); ok && list == nil {
				list = l
			}
			if r, ok := around[i].(*parse.RangeNode); ok && loop == nil {
				loop = r
			}
		}
		if loop == nil || list == nil {
			return
		}
		messages := false
		visit(loop.Pipe, nil, func(n parse.Node, _ []parse.Node) {
			if f, ok := n.(*parse.FieldNode); ok && f.Ident[0] == "Messages" {
				messages = true
			}
		})
		if !messages {
			return
		}
		if text, ok := list.Nodes[0].(*parse.TextNode); ok {
			open = strings.TrimSpace(string(text.Text))
		}
		if text, ok := list.Nodes[len(list.Nodes)-1].(*parse.TextNode); ok {
			close = strings.TrimSpace(string(text.Text))
		}
	})
	return open, close
}

// callTag is the first text inside the first {{ if }} that asks for .ToolCalls, up to a brace.
func callTag(nodes []parse.Node) string {
	var asks *parse.IfNode
	visit(&parse.ListNode{NodeType: parse.NodeList, Nodes: nodes}, nil, func(node parse.Node, _ []parse.Node) {
		n, ok := node.(*parse.IfNode)
		if !ok || asks != nil {
			return
		}
		for _, command := range n.Pipe.Cmds {
			for _, argument := range command.Args {
				if f, ok := argument.(*parse.FieldNode); ok && contains(f.Ident, "ToolCalls") {
					asks = n
				}
			}
		}
	})
	if asks == nil {
		return ""
	}
	tag, _, _ := strings.Cut(strings.TrimSpace(firstText(asks.List.Nodes)), "{")
	return tag
}

func firstText(nodes []parse.Node) string {
	for _, node := range nodes {
		switch n := node.(type) {
		case *parse.TextNode:
			return string(n.Text)
		case *parse.IfNode:
			return firstOfBranch(n.BranchNode)
		case *parse.RangeNode:
			return firstOfBranch(n.BranchNode)
		case *parse.WithNode:
			return firstOfBranch(n.BranchNode)
		case *parse.ActionNode:
			return ""
		}
	}
	return ""
}

func firstOfBranch(n parse.BranchNode) string {
	text := firstText(n.List.Nodes)
	if text == "" && n.ElseList != nil {
		text = firstText(n.ElseList.Nodes)
	}
	return text
}

func contains(all []string, one string) bool {
	for _, each := range all {
		if each == one {
			return true
		}
	}
	return false
}
