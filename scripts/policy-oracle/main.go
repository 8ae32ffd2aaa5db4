// Evaluates the MutatingAdmissionPolicy of deploy/injection on sample pods with the API server's own code, and
// writes what becomes of them. Usage: policy-oracle POLICY SAMPLES OUT
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"

	v1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	plugincel "k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/client-go/applyconfigurations"
	"sigs.k8s.io/yaml"
)

var (
	gvk = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	gvr = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func main() {
	policyText := must(os.ReadFile(os.Args[1]))
	policy := &v1.MutatingAdmissionPolicy{}
	first, _, _ := bytes.Cut(policyText, []byte("\n---\n"))
	must(0, yaml.UnmarshalStrict(first, policy))

	compiler := must(plugincel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())))
	options := plugincel.OptionalVariableDeclarations{HasAuthorizer: true}
	var variables []plugincel.NamedExpressionAccessor
	for _, it := range policy.Spec.Variables {
		variables = append(variables, &validating.Variable{Name: it.Name, Expression: it.Expression})
	}
	compiler.CompileAndStoreVariables(variables, options, environment.StoredExpressions)
	var conditions []plugincel.ExpressionAccessor
	for i := range policy.Spec.MatchConditions {
		conditions = append(conditions, (*matchconditions.MatchCondition)(&policy.Spec.MatchConditions[i]))
	}
	matcher := matchconditions.NewMatcher(
		compiler.CompileCondition(conditions, options, environment.StoredExpressions), policy.Spec.FailurePolicy, "policy", "admit", policy.Name)
	options.HasPatchTypes = true
	var patchers []patch.Patcher
	for _, it := range policy.Spec.Mutations {
		switch it.PatchType {
		case v1.PatchTypeJSONPatch:
			accessor := &patch.JSONPatchCondition{Expression: it.JSONPatch.Expression}
			patchers = append(patchers, patch.NewJSONPatcher(compiler.CompileMutatingEvaluator(accessor, options, environment.StoredExpressions)))
		case v1.PatchTypeApplyConfiguration:
			accessor := &patch.ApplyConfigurationCondition{Expression: it.ApplyConfiguration.Expression}
			patchers = append(patchers, patch.NewApplyConfigurationPatcher(compiler.CompileMutatingEvaluator(accessor, options, environment.StoredExpressions)))
		}
	}

	scheme := runtime.NewScheme()
	must(0, corev1.AddToScheme(scheme))
	ctx := context.Background()
	types := applyconfigurations.NewTypeConverter(scheme)

	samples := must(filepath.Glob(filepath.Join(os.Args[2], "*.yaml")))
	for _, sample := range samples {
		text := must(os.ReadFile(sample))
		pod := &corev1.Pod{}
		must(0, yaml.UnmarshalStrict(text, pod))
		var object runtime.Object = pod
		// Twice, as when a later plugin changes the pod: the second time it must not match.
		matched := 0
		for range 2 {
			attributes := func() *admission.VersionedAttributes {
				record := admission.NewAttributesRecord(object, nil, gvk, pod.Namespace, pod.Name, gvr, "", admission.Create, &metav1.CreateOptions{}, false, nil)
				return &admission.VersionedAttributes{
					Attributes: record, VersionedKind: gvk,
					VersionedObject: admission.NewLazyObject(object), VersionedOldObject: admission.NewLazyObject(nil),
				}
			}
			own := compiler.CreateContext(ctx)
			result := matcher.Match(own, attributes(), nil, nil)
			must(0, result.Error)
			if !result.Matches {
				break
			}
			matched++
			for _, patcher := range patchers {
				object = must(patcher.Patch(own, patch.Request{
					MatchedResource: gvr, VersionedAttributes: attributes(), ObjectInterfaces: admission.NewObjectInterfacesFromScheme(scheme),
					TypeConverter: types,
				}, celconfig.RuntimeCELCostBudget))
			}
		}
		object.GetObjectKind().SetGroupVersionKind(gvk)
		digest := sha256.Sum256(append(append([]byte{}, policyText...), text...))
		out := fmt.Sprintf("# Made by scripts/policy-oracle with the API server's own code; do not edit.\n# matched: %d\n# sha256 of policy and sample: %x\n%s",
			matched, digest, must(yaml.Marshal(object)))
		name := filepath.Join(os.Args[3], filepath.Base(sample))
		must(0, os.WriteFile(name, []byte(out), 0o644))
	}
}
